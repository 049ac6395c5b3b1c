"""A plan in the terminal: a row for each saved tensor, and a summary of its bytes, error and time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedact.compression import kept_method, method_name
from fedact.compression.lowrank.decomposition import LowRank
from fedact.config.choice import choice_text
from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.sizes import format_bytes
from fedact.config.spec import spelled
from fedact.config.updates import WHOLE
from fedact.measure.gradient_error import ROUNDING
from fedact.measure.plan_cost import InputCost, StepTime
from fedact.reports.method_label import method_label
from fedact.reports.run.accounts import times_floor
from fedact.reports.saved_tensors import made_again, saved_tensors


@dataclass(frozen=True)
class PlanReport:
    """A plan with its measurements; the time of a step and the parts are there where anything is trained.

    more: the plan for twice the budget, where there is a budget.
    """

    plan: Plan
    parts: tuple[InputCost, ...]
    time: StepTime | None
    more: Plan | None
    body_layers: str


def summary(report: PlanReport) -> Table:
    """Return the plan's bytes, error and time beside the budget and plain training, and what twice the budget would buy."""
    plan, more = report.plan, report.more
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    if plan.status == "skipped":
        table.add_row("skipped", f"{plan.reason}; the budget is {format_bytes(plan.budget_bytes)}")
    else:
        for name, text in (*_training(report), *_memory(plan)):
            table.add_row(name, text)
    sizes = [("weights", plan.weight_bytes), ("gradients", plan.gradient_bytes), ("optimizer", plan.optimizer_bytes)]
    sizes += [("copies", plan.copy_bytes)] if plan.copy_bytes else []
    table.add_row("the device's other memory", ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes))
    if more is not None:
        table.add_row("twice the budget", f"{format_bytes(more.budget_bytes)} would buy {gains(plan, more)}")
    return table


def _training(report: PlanReport) -> Iterator[tuple[str, str]]:
    """Yield rows: trained layers and micro-batch, compromises for the budget, expected error, time of a step."""
    plan, time = report.plan, report.time
    depth = f"the last {plan.layers} of {report.body_layers} and the head" if plan.layers else "the head alone"
    depth += "" if plan.update == WHOLE else f" (of the layers {plan.update})"
    frozen = f", {plan.prefix_chunk} at a time through the frozen part before" if plan.prefix_chunk else ""
    frozen += f", that part in {plan.tiles} x {plan.tiles} tiles" if plan.tiles else ""
    if plan.trials:
        yield "chosen", choice_text(plan.trials, plan.layers)
    yield "trained", f"{depth}; {plan.micro_batch} of {plan.batch_size} examples at a time{frozen}"
    bounds = [] if plan.budget_bytes is None else [f"{format_bytes(plan.budget_bytes)} {plan.scope} bytes"]
    bounds += [] if plan.slowdown is None else ["the time that it may take"]
    yield "saved tensors", saved_tensors(kept.method for kept in plan.kept)
    yield "made again", made_again(plan.recompute, plan.room_bytes)
    yield "what gave way", "nothing" if plan.reason is None else f"{plan.reason}, to fit into {' and '.join(bounds)}"
    errors = f"{error(plan.expected_error)}, {error(plan.error_per_layer)} a layer (0 is the exact gradient)"
    yield "expected error", "not measured" if plan.expected_error is None else errors
    if time:
        ratio = f"{time.seconds / time.plain_seconds:.2f}x plain training's of the whole batch at once"
        planned = "" if plan.slowdown is None else f", {plan.slowdown:.2f}x when it was planned"
        yield "time of a whole step", f"{ratio} ({time.seconds:.2f} s to {time.plain_seconds:.2f} s here{planned})"


def _memory(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the bytes of a step, with their share of the budget where it bounds them, and those of the device in all."""

    def of_budget(scope: str, size: int | None) -> str:
        if scope != plan.scope or not plan.budget_bytes or size is None:
            return format_bytes(size)
        return f"{format_bytes(size)} of {format_bytes(plan.budget_bytes)} ({100 * size / plan.budget_bytes:.1f} %)"

    ratio = (plan.vanilla_saved_bytes or 0) / plan.saved_bytes if plan.saved_bytes else None
    vanilla = format_bytes(plan.vanilla_saved_bytes) + (f" ({ratio:.1f}x)" if ratio else "")
    floor = f"; {times_floor(plan.peak_bytes, plan.floor_bytes)} (the largest layer, {format_bytes(plan.floor_bytes)})"
    yield "peak bytes", of_budget("peak", plan.peak_bytes) + (floor if plan.floor_bytes else "")
    yield "saved bytes", f"{of_budget('saved', plan.saved_bytes)}; plain training of the same layers keeps {vanilla}"
    yield "state", f"{format_bytes(plan.state_bytes)} of them, kept between steps"
    copies = ", copies" if plan.copy_bytes else ""
    images = f"{format_bytes(plan.batch_bytes)} of images and labels"
    in_all = f"peak, trained weights, gradients, optimizer{copies}, and {images}"
    yield "device bytes", f"{format_bytes(plan.device_bytes)}: {in_all}"
    yield "paper bytes", format_bytes(plan.paper_bytes)


def gains(plan: Plan, more: Plan) -> str:
    """Return in words which figures another plan changes: ``layers 2 to 3, ...; as now: ...``."""
    same = ("status", "layers", "micro_batch", "recompute", "kept")
    if all(getattr(plan, name) == getattr(more, name) for name in same):
        return "nothing: the plan would be the same" if plan.micro_batch else "nothing: that is too little as well"
    names = ("layers", "micro-batch", "recompute", "expected error", "error a layer", f"{plan.scope} bytes")
    before, after = (
        (
            str(side.layers), str(side.micro_batch), str(side.recompute), error(side.expected_error),
            error(side.error_per_layer), format_bytes(budgeted_bytes(side)),
        )
        for side in (plan, more)
    )  # fmt: skip
    if not plan.micro_batch:
        return ", ".join(f"{name} {now}" for name, now in zip(names, after, strict=True))
    pairs = list(zip(names, before, after, strict=True))
    others = ", ".join(f"{name} {new}" for name, old, new in pairs if old == new)
    changed = ", ".join(f"{name} {old} to {new}" for name, old, new in pairs if old != new)
    return "; as now: ".join(filter(None, (changed or "other methods for the same", others)))


def budgeted_bytes(plan: Plan) -> int | None:
    """Return the bytes that the plan's budget bounds."""
    return plan.saved_bytes if plan.scope == "saved" else plan.peak_bytes


def error(value: float | None) -> str:
    """Return the text of a relative squared error; rounding is 0, None is "-"."""
    return "-" if value is None else "0" if abs(value) < ROUNDING else f"{value:.3g}"


COLUMNS = ("shape", "method", "ranks", "bits", "bytes", "expected\nerror", "ms a\nstep")
SETTINGS = ("ranks", "max_ranks", "bits")
"""Settings with a column of their own."""
FEW = 3
"""Layers in a row whose names are all written out."""


def title(config: Config) -> str:
    """Return a line with network, weights, data, pixels and batch."""
    width = "" if config.width is None else f" of width {config.width:g}"
    weights = {"none": "random weights", "pretrain": "pretrained here", "imagenet": "ImageNet weights"}
    start = weights.get(config.weights) or config.weights.rpartition("/")[2]
    return f"{config.model_name}{width} ({start}), {config.data_title}, batch {config.batch_size}"


def tensor_table(plan: Plan, parts: Sequence[InputCost]) -> Table:
    """Return a row for each saved tensor, and rows for the rest, which add up to the plan's saved bytes."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("input of", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("shape", "method") else "right", overflow="fold")
    for source, group in groupby(parts, key=lambda part: part.source):
        for cells in [_rematerialized(source, list(group))] if source else map(_saved, group):
            table.add_row(*cells)
    table.add_section()
    state = plan.state_bytes or 0
    rest = (plan.saved_bytes or 0) - state - sum(part.cap_bytes for part in parts)
    others = "other layers, the loss" if rest >= 0 else "shared, or not held at once"
    for name, size in ((others, rest), ("the methods' state", state)):
        table.add_row(name, *[""] * 4, format_bytes(size))
    seconds = sum(part.seconds for part in parts)
    table.add_row("saved bytes", *[""] * 4, format_bytes(plan.saved_bytes), error(plan.expected_error), _ms(seconds))
    return table


def _saved(part: InputCost) -> list[str]:
    """Return the row of an input that a method keeps, its settings in their columns."""
    method = kept_method(part.method)
    ranks, most = getattr(method, "ranks", None), getattr(method, "max_ranks", None)
    defaults: dict[str, Any] = {field.name: field.default for field in fields(method) if field.name in SETTINGS}
    return [
        part.name + (" (frozen)" if part.frozen else " (images)" if part.images else ""),
        _shape(part),
        method_label(method_name(replace(method, **defaults))),
        spelled(ranks) if ranks or not most else f"at most {spelled(most)}",
        spelled(method.bit_depth.bits if isinstance(method, LowRank) else getattr(method, "bits", None)),
        format_bytes(part.cap_bytes),
        error(part.expected_error),
        _ms(part.seconds),
    ]


def _rematerialized(source: str, parts: Sequence[InputCost]) -> list[str]:
    """Return one row for the layers whose inputs are rematerialized from one source."""
    names = [part.name for part in parts]
    shapes = [_shape(part) for part in parts]
    if len(names) > FEW:
        names = [names[0], f"... ({len(names)} layers)", names[-1]]
        shapes = [shapes[0], "", shapes[-1]]
    seconds = sum(part.seconds for part in parts)
    return ["\n".join(names), "\n".join(shapes), f"made again from\n{source}", "", "", "0", "", _ms(seconds)]


def _shape(part: InputCost) -> str:
    return "x".join(map(str, part.shape))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
