"""The bench's tables."""

from collections.abc import Sequence
from statistics import fmean

from rich.table import Table

from fedact.equal_cosine import LARGE, Least, Ratios
from fedact.measurement import Measured
from fedact.sizes import format_bytes

COSTS = ("saved", "of it state", "peak", "paper", "time", "GFLOP", "x vanilla", "squared bias", "variance", "error")
LAYER_WIDTH = 12


def cost_table(title: str, found: Sequence[Measured]) -> Table:
    """Return what each method holds and costs, and how far its gradient is off."""
    table = _table(f"{title}\nBytes of a step; time and GFLOP of the trained part; bias and variance: mean of the layers")
    for column in COSTS:
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        table.add_row(each.fidelity.method, *_costs(each))
    return table


def _costs(each: Measured) -> list[str]:
    fidelity = each.fidelity
    sizes = (fidelity.saved_bytes, fidelity.state_bytes, fidelity.peak_bytes, fidelity.paper_bytes)
    time = "-" if each.time_ratio is None else f"{each.time_ratio:.2f}x"
    shares = (fmean(fidelity.bias.values()), fmean(fidelity.variance.values()), fidelity.total_error)
    flops = (f"{each.flops / 1e9:.2f}", f"{each.flops_ratio:.2f}x")
    return [*map(format_bytes, sizes), time, *flops, *map(_share, shares)]


def gradient_table(found: Sequence[Measured]) -> Table:
    """Return each method's cosine with the exact gradient, layer by layer."""
    weights = list(found[0].fidelity.cosine)
    table = _table("Cosine of each weight's gradient with the exact one")
    for weight in weights:
        table.add_column(weight.removesuffix(".weight"), justify="right", overflow="fold", max_width=LAYER_WIDTH)
    for each in found:
        table.add_row(each.fidelity.method, *(f"{each.fidelity.cosine[weight]:.4f}" for weight in weights))
    return table


def least_table(title: str, found: Sequence[Least]) -> Table:
    """Return the least bytes that each family needs, by layer and cosine."""
    table = _table(f"{title}\nLeast bytes for the weight gradient's cosine with the exact one", "layer")
    families = list(dict.fromkeys(each.family for each in found))
    for column in ("cosine", "exact", *families):
        table.add_column(column, justify="right", no_wrap=True)
    for layer, wanted in dict.fromkeys((each.layer, each.wanted) for each in found):
        own = {each.family: each for each in found if (each.layer, each.wanted) == (layer, wanted)}
        cells = (format_bytes(own[name].bytes) if own[name].method else "not reached" for name in families)
        table.add_row(layer, f"{wanted:g}", format_bytes(next(iter(own.values())).exact_bytes), *cells)
    return table


def ratio_table(ratios: Sequence[Ratios]) -> Table:
    """Return each family's bytes relative to published HOSVD's."""
    table = _table("Bytes relative to published HOSVD's at the same cosine (the exact tensor's, where it is not reached)")
    table.add_column(f"where HOSVD needs over {format_bytes(LARGE)} bytes: geometric mean", justify="right")
    table.add_column("elsewhere: the worst", justify="right")
    for each in ratios:
        table.add_row(each.family, *("-" if ratio is None else f"{ratio:.3f}" for ratio in (each.typical, each.worst)))
    return table


def _table(title: str, first: str = "method") -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


def _share(value: float) -> str:
    """Return a relative squared error, what is only rounding as 0."""
    return "0" if abs(value) < 1e-9 else f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4f}"
