"""A plan for a person: what is kept, layer by layer, and what the whole of it comes to."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedact.compression import Method, make_method, method_name
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.sizes import format_bytes
from fedact.config.spec import spelled
from fedact.measure.plan_cost import Part
from fedact.plan_summary import error

COLUMNS = ("shape", "method", "ranks", "bits", "bytes", "expected\nerror", "ms a\nstep")
SETTINGS = ("ranks", "max_ranks", "bits")
"""Settings with a column of their own."""
FEW = 3
"""Layers in a row whose names are all written out."""


def title(config: Config) -> str:
    """Return what the plans are for: network, weights, data, pixels and batch."""
    width = "" if config.width is None else f" of width {config.width:g}"
    weights = {"none": "random weights", "pretrain": "pretrained here", "imagenet": "ImageNet weights"}
    start = weights.get(config.weights) or config.weights.rpartition("/")[2]
    return f"{config.model}{width} ({start}), {config.data_name} at {config.resolution} px, batch {config.batch_size}"


def kept_table(plan: Plan, parts: Sequence[Part]) -> Table:
    """Return what is kept, a row a tensor, and rows that add up to the plan's saved bytes."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("input of", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("shape", "method") else "right", overflow="fold")
    for origin, group in groupby(parts, key=lambda part: part.origin):
        for cells in _made_again(list(group)) if origin else map(_kept, group):
            table.add_row(*cells)
    table.add_section()
    for name, size in _others(plan, parts):
        table.add_row(name, *[""] * 4, format_bytes(size))
    seconds = sum(part.seconds for part in parts)
    table.add_row("saved bytes", *[""] * 4, format_bytes(plan.saved_bytes), error(plan.expected_error), _ms(seconds))
    return table


def _kept(part: Part) -> list[str]:
    method = make_method(part.method)
    name = part.name + (" (frozen)" if part.frozen else " (images)" if part.images else "")
    cells = (_plain_name(method), _ranks(method), _bits(method))
    return [name, _shape(part), *cells, format_bytes(part.cap_bytes), error(part.expected_error), _ms(part.seconds)]


def _made_again(parts: Sequence[Part]) -> Iterator[list[str]]:
    """Yield one row for all these layers, which take what is made again from the same other one."""
    names = [part.name for part in parts]
    shapes = [_shape(part) for part in parts]
    if len(names) > FEW:
        names = [names[0], f"... ({len(names)} layers)", names[-1]]
        shapes = [shapes[0], "", shapes[-1]]
    seconds = sum(part.seconds for part in parts)
    again = f"made again from\n{parts[0].origin}"
    yield ["\n".join(names), "\n".join(shapes), again, "", "", "0", "", _ms(seconds)]


def _others(plan: Plan, parts: Sequence[Part]) -> Iterator[tuple[str, int]]:
    """Yield what is held besides the kept tensors, so that all of it adds up to the saved bytes."""
    kept = sum(part.cap_bytes for part in parts)
    state = plan.state_bytes or 0
    rest = (plan.saved_bytes or 0) - state - kept
    yield ("other layers, the loss" if rest >= 0 else "shared, or not held at once"), rest
    yield "the methods' state", state


def _plain_name(method: Method) -> str:
    """Return the method's name without the settings that have a column of their own."""
    own = {field.name: field.default for field in fields(method) if field.name in SETTINGS}
    return method_name(replace(method, **own))


def _ranks(method: Method) -> str:
    given, most = getattr(method, "ranks", None), getattr(method, "max_ranks", None)
    return spelled(given) if given or not most else f"at most {spelled(most)}"


def _bits(method: Method) -> str:
    return spelled(getattr(method, "bits", None))


def _shape(part: Part) -> str:
    return "x".join(map(str, part.shape))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
