"""What is done for one tile, task by task: regions, padding and copies, the bytes alive meanwhile, and the run itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.prefix.tiles_geometry import Reach, Span
from fedact.nn.prefix.tiles_graph import IMAGES, Step, Steps
from fedact.nn.prefix.tiles_operations import Pointwise, Streamed, Windowed

Crop = tuple[slice, slice]


class Piece(NamedTuple):
    """What a step reads of a buffer along one axis: from ``start``, ``length`` of the ``buffer``'s rows."""

    start: int
    length: int
    buffer: int


class AxisStep(NamedTuple):
    """A step along one axis: the rows of its output, what it reads of each input, and the padding of that.

    Relative to buffers, so that tiles of the same kind have equal steps wherever they lie.
    """

    rows: int
    pieces: tuple[Piece, ...]
    before: int = 0
    after: int = 0


Axis = tuple[AxisStep | None, ...]
"""By step; None for one that the tile does not need."""


def whole_axis(steps: Steps, first: int, axis: int) -> Axis:
    """Return the steps from ``first`` on along one axis of whole maps; None for those of unknown code."""

    def entry(step: Step) -> AxisStep | None:
        if step.operation is None:
            return None
        rows, out = (steps.shape(value)[axis + 1] for value in (step.inputs[0], step.output))
        piece = (Piece(0, rows, rows),) * len(step.inputs)
        if not isinstance(step.operation, Windowed):
            return AxisStep(out, piece)
        window = step.operation.axes[axis]
        overhang = window.reach(Span(0, out), rows).after
        return AxisStep(out, piece, window.before, max(window.after, overhang))

    return tuple(entry(step) for step in steps.steps[first:])


def tile_axis(steps: Steps, last: int, axis: int, span: Span) -> tuple[Span, Axis]:
    """Return the rows of the images that a tile needs, and the steps up to ``last`` along one axis; span: of its output."""
    needed: dict[int, Span] = {steps.steps[last - 1].output: span}
    reaches: dict[int, Reach] = {}
    for place in reversed(range(last)):
        step = steps.steps[place]
        if step.output in needed:
            operation, out = step.operation, needed[step.output]
            rows = steps.shape(step.inputs[0])[axis + 1]
            reaches[place] = operation.axes[axis].reach(out, rows) if isinstance(operation, Windowed) else Reach(out)
            for value in step.inputs:
                needed[value] = reaches[place].span.hull(needed.get(value))

    def entry(place: int) -> AxisStep | None:
        if place not in reaches:
            return None
        step, reach = steps.steps[place], reaches[place]
        pieces = (Piece(reach.span.start - needed[v].start, reach.span.length, needed[v].length) for v in step.inputs)
        return AxisStep(needed[step.output].length, tuple(pieces), reach.before, reach.after)

    return needed[IMAGES], tuple(map(entry, range(last)))


@dataclass(frozen=True, eq=False)
class Task:
    """One step on buffers.

    crops: of each input, None where it is read whole. padding, margin, cut, copied, result: see ``Padding``. overwrites: the
    place of the input that the output is written into. frees: the inputs that nothing reads later. output: elements of it,
    an example. channels_last: whether the input of a block in streams has its channels last in memory.
    """

    step: Step
    crops: tuple[Crop | None, ...] = ()
    padding: tuple[int, ...] = ()
    margin: tuple[int, int] = (0, 0)
    cut: Crop | None = None
    copied: int = 0
    result: int = 0
    overwrites: int | None = None
    frees: tuple[int, ...] = ()
    output: int = 0
    channels_last: bool = False


def tasks_of(
    steps: Steps, first: int, rows: Axis, columns: Axis, kept: Sequence[int], whole: bool = True
) -> tuple[Task, ...]:
    """Return the tasks of the steps from ``first`` on; kept: the values that are wanted at the end. whole: of the images."""
    chosen = steps.steps[first : first + len(rows)]
    last_use = {value: place for place, step in enumerate(chosen, first) for value in step.inputs}
    last_use |= dict.fromkeys(kept, len(steps.steps))
    tasks = []
    for place, (row, column) in enumerate(zip(rows, columns, strict=True), first):
        step = steps.steps[place]
        frees = tuple(v for v in dict.fromkeys((*step.inputs, step.output)) if last_use.get(v, -1) <= place)
        if step.operation is None:
            tasks.append(Task(step, frees=frees))
        elif row is not None and column is not None:
            tasks.append(_task(steps, step, row, column, frees, whole))
    return tuple(tasks)


def whole_tasks(steps: Steps, first: int) -> tuple[Task, ...]:
    """Return the tasks of the steps from ``first`` on, on whole maps."""
    rows, columns = (whole_axis(steps, first, axis) for axis in (0, 1))
    return tasks_of(steps, first, rows, columns, steps.outputs)


def _task(steps: Steps, step: Step, row: AxisStep, column: AxisStep, frees: tuple[int, ...], whole: bool) -> Task:
    crops = tuple(map(_crop, row.pieces, column.pieces))
    output = steps.shape(step.output).channels * row.rows * column.rows
    if isinstance(step.operation, Windowed):
        # A part of the images is copied as any other part of a map is.
        cropped = crops[0] is not None or (step.inputs[0] == IMAGES and not whole)
        padding = _padding(step.operation, row, column, steps.shape(step.inputs[0]).channels, output, cropped)
        return Task(step, crops, *padding, frees=frees, output=output)
    if isinstance(step.operation, Streamed):
        return Task(step, frees=frees, output=output)
    # What unknown code reads may be a view of something else.
    writable = [v in frees and v not in steps.exposed and crop is None for v, crop in zip(step.inputs, crops, strict=True)]
    in_place = not isinstance(step.operation, Pointwise) or step.operation.run_in_place is not None
    distinct = len(set(step.inputs)) == len(step.inputs)
    place = writable.index(True) if in_place and distinct and True in writable else None
    return Task(step, crops, overwrites=place, frees=frees, result=output, output=output)


class Padding(NamedTuple):
    """How an input is padded: a copy of it (``F.pad``'s numbers), or by the window's own margin, alike on both sides.

    cut: what of the result is the output, None for all. Elements an example: of a copy of the input, of the result.
    """

    copy: tuple[int, ...]
    margin: tuple[int, int]
    cut: Crop | None
    copied: int
    result: int


def _padding(operation: Windowed, row: AxisStep, column: AxisStep, channels: int, output: int, cropped: bool) -> Padding:
    """Return the padding that takes less memory: alike on both sides, it adds rows of no use to the result."""
    (rows, columns), (down, across) = (axis.pieces[0].length for axis in (row, column)), operation.axes
    taken = channels * rows * columns
    padded = channels * (rows + row.before + row.after) * (columns + column.before + column.after)
    with_copy = Padding((column.before, column.after, row.before, row.after), (0, 0), None, padded, output)
    top, left = down.shift(row.before, row.after), across.shift(column.before, column.after)
    if top is None or left is None:
        return with_copy
    margin, copied = (top.padding, left.padding), taken if cropped else 0
    made = down.size_padded_alike(rows, top.padding), across.size_padded_alike(columns, left.padding)
    if made == (row.rows, column.rows):
        return Padding((), margin, None, copied, output)
    result = output // (row.rows * column.rows) * made[0] * made[1]
    if max(taken + padded, padded + output) < max(taken + result, result + output):
        return with_copy
    cut = slice(top.start, top.start + row.rows), slice(left.start, left.start + column.rows)
    return Padding((), margin, cut, copied, result)


def _crop(row: Piece, column: Piece) -> Crop | None:
    if (row.start, row.length) == (0, row.buffer) and (column.start, column.length) == (0, column.buffer):
        return None
    return slice(row.start, row.start + row.length), slice(column.start, column.start + column.length)


def run(tasks: Sequence[Task], model: nn.Module, values: dict[int, Any]) -> None:
    """Run the tasks on values by number, which are freed after their last use and joined by the results."""
    for task in tasks:
        operation = task.step.operation
        if operation is None:
            result = task.step.run(model, [values[value] for value in task.step.inputs])
        elif isinstance(operation, Windowed):
            result = _windowed(task, operation, values)
        elif isinstance(operation, Streamed):
            result = _streamed(task, operation, model, values)
        elif isinstance(operation, Pointwise):
            result = _pointwise(task, operation, values)
        else:
            result = _summed(task, values)
        for each in task.step.then:
            assert each.run_in_place is not None
            result = each.run_in_place(result)
        values[task.step.output] = result
        del result
        for value in task.frees:
            values.pop(value, None)


def _read(task: Task, values: dict[int, Any], place: int) -> Tensor:
    """Return what a task reads of an input."""
    x: Tensor = values[task.step.inputs[place]]
    return x if (crop := task.crops[place]) is None else x[:, :, crop[0], crop[1]]


def _windowed(task: Task, operation: Windowed, values: dict[int, Any]) -> Tensor:
    x = _read(task, values, 0)
    for value in task.frees:
        values.pop(value, None)
    if task.padding:
        x = F.pad(x, task.padding, value=operation.fill)
    elif task.copied:
        # As the kernel itself would, unseen.
        x = x.clone()
    x = operation.run(x, task.margin)
    return x if task.cut is None else x[:, :, task.cut[0], task.cut[1]].clone()


def _streamed(task: Task, operation: Streamed, model: nn.Module, values: dict[int, Any]) -> Tensor:
    x = values[task.step.inputs[0]]
    for value in task.frees:
        values.pop(value, None)
    return operation.run(model, x)


def _pointwise(task: Task, operation: Pointwise, values: dict[int, Any]) -> Tensor:
    x = _read(task, values, 0)
    if operation.run_in_place is None:
        return operation.run(x)
    return operation.run_in_place(x if task.overwrites == 0 else x.clone())


def _summed(task: Task, values: dict[int, Any]) -> Tensor:
    first, second = (_read(task, values, place) for place in (0, 1))
    if task.overwrites is None or first.dtype != second.dtype:
        return torch.add(first, second)
    return first.add_(second) if task.overwrites == 0 else second.add_(first)
