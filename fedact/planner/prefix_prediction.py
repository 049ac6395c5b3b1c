"""Peak bytes of a frozen prefix by any schedule: in chunks of examples, in tiles, in streams."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import peak
from fedact.measure.memory import followed, stored_bytes
from fedact.measure.stored import counted
from fedact.nn.layers import LeanAttention, LeanMultiheadAttention
from fedact.nn.prefix.chunks import examples_are_independent, in_chunks
from fedact.nn.prefix.split import Split
from fedact.nn.prefix.tiles import TiledPrefix
from fedact.nn.prefix.tiles_choice import MOST, tiling_bytes
from fedact.nn.prefix.tiles_programs import Programs
from fedact.planner.problem import PrefixSchedule, Problem

AMPLE = 2**40
"""Bytes of room with which all channels of a block run at once: the fastest way to the outputs' shapes and strides."""


@dataclass(eq=False)
class Cut:
    """A frozen prefix, whatever the room.

    installed: installs the model's layers with so much room, and returns it; what runs here needs that first.
    """

    problem: Problem
    split: Split
    installed: Callable[[int | None], nn.Module]
    is_independent: bool = field(init=False)
    _outputs: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.installed(None)
        self.is_independent = examples_are_independent(self.split, self.problem.x[:2])

    @cached_property
    def programs(self) -> Programs | None:
        """The tasks of every number of tiles, None where their bytes are unknown."""
        x, _ = self.problem.examples(1)
        if x.dim() != 4:
            return None
        self.installed(self.problem.room)
        programs = TiledPrefix(self.split, 1).programs(tuple(x.shape[1:]), x.dtype)
        return programs if programs.steps.known else None

    @cached_property
    def peaks(self) -> tuple[int, int]:
        """The peak bytes of one and of two examples, whole and at once, in the fast engine."""
        self.installed(None)
        first, *others = (self.measured(count) for count in (1, 2)[: self.problem.batch_size])
        return first, others[0] if others else first

    @cached_property
    def is_linear(self) -> bool:
        """Whether every example adds as many bytes: attention works on groups of examples."""
        return not any(isinstance(module, LeanAttention | LeanMultiheadAttention) for module in self.split.model.modules())

    def measured(self, count: int) -> int:
        """Return the peak bytes of so many examples, whole and at once, as the model is installed now."""
        x, _ = self.problem.examples(count)
        with followed(self.split.model, inputs=(x,)) as ledger, torch.no_grad():
            _ = self.split.prefix(x)
        return peak_of(ledger)

    @cached_property
    def output_bytes(self) -> int:
        """The bytes of the outputs that are not the images, an example."""
        images = self._image.untyped_storage().data_ptr()
        return stored_bytes([value for value in self._first if value.untyped_storage().data_ptr() != images])

    @cached_property
    def _image(self) -> Tensor:
        return self.problem.examples(1)[0]

    @cached_property
    def _first(self) -> Sequence[Tensor]:
        """The outputs of one example, with the strides that they have in streams where there are some."""
        in_streams = self.problem.room is not None and self.programs is not None
        self.installed(AMPLE if self.problem.room is not None else None)
        return in_chunks(TiledPrefix(self.split, 1) if in_streams else self.split.prefix, self._image, 1) or []

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return tensors like the outputs of examples, in shapes and strides."""
        if not self._outputs or len(self._outputs[0]) < len(x):
            self._outputs = [_repeated(value, len(x)) for value in self._first]
        return tuple(each[: len(x)] for each in self._outputs)


class Prefix:
    """The peak bytes of a frozen prefix with so much room for blocks in streams, None for the fast engine."""

    def __init__(self, cut: Cut, room: int | None) -> None:
        self.cut, self.room = cut, room
        self._peaks: dict[tuple[int, int], int] = {}

    @cached_property
    def _programs(self) -> Programs | None:
        programs = self.cut.programs
        return programs if programs is None or self.room is None else programs.in_room(self.room)

    def least(self, examples: int) -> PrefixSchedule:
        """Return the schedule with the fewest bytes."""
        schedules = (PrefixSchedule(chunk, tiles) for tiles in self._tiles() for chunk in (0, 1))
        return min(schedules, key=lambda schedule: self.peak_bytes(examples, schedule))

    def in_words(self) -> tuple[int, str]:
        """Return the fewest bytes that one example takes, and how it runs then, in words."""
        schedule = self.least(1)
        streams = ["streams"] if self.room is not None else []
        tiles = [f"{schedule.tiles} x {schedule.tiles} tiles"] if schedule.tiles > 1 else []
        size = self.peak_bytes(1, schedule)
        return size, f", {size:,} in {' and '.join([*streams, *tiles])}" if streams or tiles else ""

    def _tiles(self) -> Iterator[int]:
        """Yield the numbers of tiles that may be chosen, the fastest first; of blocks in streams, 1 is whole maps."""
        if self.room is None:
            yield 0
        elif self._programs is None:
            yield 0
            return
        if self._programs is not None:
            yield 1
            yield from range(2, MOST + 1) if self._programs.stages() else ()

    def within(self, fits: Callable[[int], bool], examples: int) -> Iterator[PrefixSchedule]:
        """Yield the schedules whose peak bytes fit, the fastest first; what is slower takes fewer bytes.

        Tiles are slower than chunks: they compute again where they overlap.
        """
        least: int | None = None
        for tiles in self._tiles():
            # The extremes: one by one, the outputs so far are alive too.
            if not any(fits(self.peak_bytes(examples, PrefixSchedule(chunk, tiles))) for chunk in (1, 0)):
                continue
            for chunk in (0, *powers_below(examples)):
                schedule = PrefixSchedule(chunk, tiles)
                size = self.peak_bytes(examples, schedule)
                if fits(size) and (least is None or size < least):
                    least = size
                    yield schedule

    def peak_bytes(self, examples: int, schedule: PrefixSchedule) -> int:
        """Return the most bytes alive while it runs on so many examples."""
        chunk = schedule.chunk
        if not chunk:
            return self._at_once(examples, schedule.tiles)
        # The whole batch's outputs are allocated after the first chunk.
        output = self.cut.output_bytes
        whole, chunk = examples * output, min(chunk, examples)
        following = self._at_once(min(chunk, examples - chunk), schedule.tiles)
        return max(self._at_once(chunk, schedule.tiles), whole + max(chunk * output, following))

    def _at_once(self, count: int, tiles: int) -> int:
        """Return the most bytes alive while it runs on so many examples at once."""
        if not count:
            return 0
        if not tiles and self.room is None and self.cut.is_linear:
            first, second = self.cut.peaks
            return first + (second - first) * (count - 1)
        if (count, tiles) not in self._peaks:
            self._peaks[count, tiles] = self._peak(count, tiles)
        return self._peaks[count, tiles]

    def _peak(self, count: int, tiles: int) -> int:
        if not tiles or self._programs is None:
            self.cut.installed(self.room)
            return self.cut.measured(count)
        return tiling_bytes(self._programs, tiles, self.cut.problem.x.element_size(), count)


def powers_below(count: int) -> list[int]:
    """Return the powers of two below a number, the largest first; 1 for 1.

    >>> powers_below(16), powers_below(5), powers_below(1)
    ([8, 4, 2, 1], [4, 2, 1], [1])
    """
    return [2**power for power in range(max(1, (count - 1).bit_length()) - 1, -1, -1)]


def peak_of(ledger: Ledger) -> int:
    """Return the most bytes that a ledger has counted at one moment."""
    return peak((life.birth, life.death, life.size) for life in counted(ledger.lifetimes))[0]


def _repeated(value: Tensor, count: int) -> Tensor:
    """Return so many examples like one, with its order of dimensions in memory."""
    shape = count, *value.shape[1:]
    whole = torch.empty_permuted(shape, memory_order(value), dtype=value.dtype, device=value.device)
    return whole.copy_(value.expand(shape))
