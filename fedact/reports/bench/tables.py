"""The bench's tables."""

from collections.abc import Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedact.config.sizes import format_bytes
from fedact.measure.equal_cosine import LARGE, FamilyRatios, LeastBytes
from fedact.measure.floor import Floor
from fedact.measure.gradient_error import ROUNDING
from fedact.measure.methods import MethodMeasurement
from fedact.reports.method_label import method_label

COSTS = ("recompute", "peak", "x floor", "saved", "device", "state", "paper", "time", "GFLOP", "x vanilla")
ERRORS = ("bias²", "variance", "error")
LAYER_WIDTH = 12


def cost_table(title: str, measurements: Sequence[MethodMeasurement], floor: Floor, micro_batch: int | None = None) -> Table:
    """Return methods' bytes, time and operations a step; with micro_batch, time relative to vanilla of whole batches."""
    part = "time (of vanilla's) and operations from the first trained layer on"
    whole = (
        f"micro-batches of {micro_batch}; time of the whole step (of vanilla's at once), operations of the trained layers"
    )
    least = f"floor {format_bytes(floor.bytes)} (input and output of {floor.layer}, one image)"
    rooms = {row.room_bytes for row in measurements if row.room_bytes is not None}
    streams = "".join(f"; in streams: blocks in {format_bytes(room)} bytes of room" for room in sorted(rooms))
    table = _table(f"{title}\n{least}{streams}\nBytes of a step; {whole if micro_batch else part}")
    for column in COSTS:
        table.add_column(column, justify="right", overflow="fold")
    for row in measurements:
        errors = row.gradient_error
        multiple = f"{errors.peak_bytes / floor.bytes:.2f}" if floor.bytes else "-"
        sizes = (errors.saved_bytes, row.device_bytes, errors.state_bytes, errors.paper_bytes)
        time = "-" if row.time_ratio is None else f"{row.time_ratio:.2f}x"
        operations = (f"{row.flops / 1e9:.2f}", f"{row.flops_ratio:.2f}x")
        peak = (format_bytes(errors.peak_bytes), multiple)
        table.add_row(method_label(row.name), str(row.recompute), *peak, *map(format_bytes, sizes), time, *operations)
    return table


def gradient_table(measurements: Sequence[MethodMeasurement]) -> Table:
    """Return how far each method's gradient is off, and its cosine with the exact one layer by layer."""
    weights = list(measurements[0].gradient_error.cosine)
    table = _table(
        "The gradient's squared error, relative to its square: bias² and variance (mean of the layers), all weights as one"
        "\nThen the cosine of each weight's gradient with the exact one"
    )
    for column in ERRORS:
        table.add_column(column, justify="right", overflow="fold")
    for weight in weights:
        table.add_column(weight.removesuffix(".weight"), justify="right", overflow="fold", max_width=LAYER_WIDTH)
    for row in measurements:
        errors = row.gradient_error
        shares = (fmean(errors.bias.values()), fmean(errors.variance.values()), errors.total_error)
        cosines = (f"{errors.cosine[weight]:.4f}" for weight in weights)
        table.add_row(method_label(row.name), *map(_share, shares), *cosines)
    return table


def least_table(title: str, rows: Sequence[LeastBytes]) -> Table:
    """Return the least bytes that each family needs, by layer and cosine."""
    table = _table(f"{title}\nLeast bytes for the weight gradient's cosine with the exact one", "layer")
    families = list(dict.fromkeys(least.family for least in rows))
    for column in ("cosine", "exact", *map(method_label, families)):
        table.add_column(column, justify="right", overflow="fold")
    for layer, wanted in dict.fromkeys((least.layer, least.wanted) for least in rows):
        by_family = {least.family: least for least in rows if (least.layer, least.wanted) == (layer, wanted)}
        cells = [format_bytes(by_family[name].bytes) if by_family[name].method else "not reached" for name in families]
        table.add_row(layer, f"{wanted:g}", format_bytes(by_family[families[0]].exact_bytes), *cells)
    return table


def ratio_table(ratios: Sequence[FamilyRatios]) -> Table:
    """Return each family's bytes relative to every baseline's, side by side in the order of ``ratios``."""
    what = "Bytes relative to a baseline's at the same cosine (the exact tensor's, where it is not reached)"
    first = f"First: geometric mean where published HOSVD needs over {format_bytes(LARGE)} bytes"
    table = _table(f"{what}\n{first}; then the worst elsewhere, and cases with more bytes")
    by_family: dict[str, list[FamilyRatios]] = {}
    for row in ratios:
        by_family.setdefault(row.family, []).append(row)
    for baseline in dict.fromkeys(row.baseline for row in ratios):
        for column in (f"of {baseline}", "worst elsewhere", "more in"):
            table.add_column(column, justify="right", overflow="fold")
    for name, rows in by_family.items():
        table.add_row(method_label(name), *(cell for row in rows for cell in _ratio_cells(row)))
    return table


def _ratio_cells(row: FamilyRatios) -> tuple[str, ...]:
    return *("-" if ratio is None else f"{ratio:.3f}" for ratio in (row.typical, row.worst)), f"{row.more_in} of {row.cases}"


def _table(title: str, first: str = "method") -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    return table


def _share(value: float) -> str:
    """Return the text of a relative squared error; rounding is 0."""
    return "0" if abs(value) < ROUNDING else f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4f}"
