"""The tasks of every way to run a frozen prefix in tiles, made once for a shape of images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import torch
from torch import nn
from torch.fx import Graph

from fedact.nn.prefix.flat import flat_graph
from fedact.nn.prefix.split import Split
from fedact.nn.prefix.tiles_bytes import peak_bytes
from fedact.nn.prefix.tiles_geometry import Span, tile_spans
from fedact.nn.prefix.tiles_graph import IMAGES, MapShape, Steps, steps_of
from fedact.nn.prefix.tiles_operations import Streamed, Windowed
from fedact.nn.prefix.tiles_program import Axis, Task, tasks_of, tile_axis, whole_tasks
from fedact.nn.prefix.tiles_streams import with_layouts, with_streams, without_spare
from fedact.torch_private import without_dispatch_modes


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile: its tasks, and its rows and columns in the images and in the assembled map."""

    tasks: tuple[Task, ...]
    images: tuple[Span, Span]
    output: tuple[Span, Span]


class Programs:
    """The tasks of every way to run a prefix on images of one shape.

    whole: its steps on whole maps, with blocks in streams as one step each; None where none are. chosen: after how many
    steps tiles end, by their number and the bytes of an element.
    """

    def __init__(self, steps: Steps, whole: Steps | None = None) -> None:
        self.steps, self.whole = steps, whole or steps
        self.has_streams = any(isinstance(step.operation, Streamed) for step in self.whole.steps)
        self._starts = {step.output: place for place, step in enumerate(self.whole.steps, 1)}
        self._rests: dict[int, tuple[Task, ...]] = {}
        self._rest_peaks: dict[tuple[int, int, int], int] = {}
        self._axes: dict[tuple[int, int], list[list[tuple[Span, Span, Axis]]]] = {}
        self._kinds: dict[tuple[Axis, Axis], tuple[Task, ...]] = {}
        self._rooms: dict[int, Programs] = {}
        self.chosen: dict[tuple[int, int], int | None] = {}

    def in_room(self, room: int) -> "Programs":
        """Return the same with so much room for blocks in streams."""
        if room not in self._rooms:
            streamed = [
                replace(step, operation=replace(step.operation, room=room)) if isinstance(step.operation, Streamed) else step
                for step in self.whole.steps
            ]
            other = Programs(self.steps, replace(self.whole, steps=tuple(streamed)))
            other._axes, other._kinds, other._rooms = self._axes, self._kinds, self._rooms
            self._rooms[room] = other
        return self._rooms[room]

    def stages(self) -> list[int]:
        """Return after how many steps tiling may end: one value alone goes on, and the next step is no mere map of it."""
        steps, places = self.steps.steps, []
        for stage in range(1, self.steps.local + 1):
            later = {value for step in steps[stage:] for value in step.inputs} | set(self.steps.outputs)
            crossing = {step.output for step in steps[:stage]} & later
            goes_on = stage == len(steps) or isinstance(steps[stage].operation, Windowed | None)
            windowed = any(isinstance(step.operation, Windowed) for step in steps[:stage])
            ends = steps[stage - 1].output in self._starts
            if crossing == {steps[stage - 1].output} and goes_on and windowed and ends:
                places.append(stage)
        return places

    def rest(self, stage: int) -> tuple[Task, ...]:
        """Return the tasks of the steps after a stage, on whole maps."""
        if stage not in self._rests:
            last = self.steps.steps[stage - 1].output if stage else IMAGES
            tasks = whole_tasks(self.whole, self._starts[last] if stage else 0)
            if self.has_streams:
                tasks = with_layouts(without_spare(tasks) if stage else tasks, {last: stage > 0})
            self._rests[stage] = tasks
        return self._rests[stage]

    def rest_peak(self, stage: int, element_bytes: int, examples: int) -> int:
        """Return the most bytes alive during the steps after a stage; element_bytes: of one element of all examples."""
        key = stage, element_bytes, examples
        if key not in self._rest_peaks:
            last = self.steps.steps[stage - 1].output
            given = {last: self.steps.shape(last).elements * element_bytes} if stage else {}
            self._rest_peaks[key] = peak_bytes(self.rest(stage), given, element_bytes, examples)
        return self._rest_peaks[key]

    @cached_property
    def products(self) -> list[int]:
        """The multiplications of every step on whole maps, an example."""
        return [products_of([task]) for task in whole_tasks(self.steps, 0)]

    def tiles(self, stage: int, count: int) -> Iterator[Tile]:
        """Yield the tiles of a stage, row by row."""
        down, across = self._axes_of(stage, count)
        return (self._tile(stage, *place) for place in product(down, across))

    def middle(self, stage: int, count: int) -> Tile:
        """Return the tile in the middle, which has others on all sides where there are three in a row."""
        down, across = self._axes_of(stage, count)
        return self._tile(stage, down[len(down) // 2], across[len(across) // 2])

    def _axes_of(self, stage: int, count: int) -> list[list[tuple[Span, Span, Axis]]]:
        """Return, for rows and for columns, the spans of the tiles with what they need of the images, and their steps."""
        if (stage, count) not in self._axes:
            sizes = self.steps.shape(self.steps.steps[stage - 1].output)[1:]
            self._axes[stage, count] = [
                [(span, *tile_axis(self.steps, stage, axis, span)) for span in tile_spans(size, count)]
                for axis, size in enumerate(sizes)
            ]
        return self._axes[stage, count]

    def _tile(self, stage: int, row: tuple[Span, Span, Axis], column: tuple[Span, Span, Axis]) -> Tile:
        """Return a tile; those of the same kind share their tasks."""
        (down, top, rows), (across, left, columns) = row, column
        if (rows, columns) not in self._kinds:
            last = self.steps.steps[stage - 1].output
            self._kinds[rows, columns] = tasks_of(self.steps, 0, rows, columns, [last], whole=False)
        return Tile(self._kinds[rows, columns], (top, left), (down, across))


def programs_for(split: Split, shape: tuple[int, ...], dtype: torch.dtype) -> Programs:
    """Return the programs of a prefix for images of this shape (channels, rows, columns) and type."""
    return programs_of(split.model, flat_graph(split.model, split.parts.before), shape, dtype)


def programs_of(model: nn.Module, graph: Graph, shape: tuple[int, ...], dtype: torch.dtype) -> Programs:
    """Return the programs of a flat graph for images of this shape (channels, rows, columns) and type."""
    steps = steps_of(model, graph, MapShape(*shape), dtype)
    # Of these tensors only shapes matter: none counts in a step that is measured.
    with without_dispatch_modes():
        return Programs(steps, with_streams(model, steps, dtype))


def products_of(tasks: Iterable[Task]) -> int:
    """Return the multiplications of tasks, an example."""
    operations = [(task.step.operation, task.result) for task in tasks]
    return sum(operation.products * result for operation, result in operations if isinstance(operation, Windowed))
