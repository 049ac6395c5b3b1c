"""Peak bytes of a step under any methods, predicted from one step's shapes and lifetimes: no step is run for a candidate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedact.compression import Method
from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import peak
from fedact.measure.memory import followed, stored_bytes
from fedact.measure.stored import counted
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.nn.prefix.chunks import examples_are_independent, in_chunks
from fedact.nn.prefix.split import PrefixOutputs, Split, split
from fedact.nn.surgery import install
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem
from fedact.planner.stand_in import Calls, Lossy, StandIn, Structure, structure_of
from fedact.planner.step_levels import StepLevels, mask_readers, step_levels
from fedact.planner.working_memory import WorkingMemory

AT_ONCE = 4
"""Examples at a time in the prefix, whose outputs steps start from here."""
SURE = 0.98
"""A step that is predicted to take the budget divided by this may still be within it."""
FEW = 3
"""So many examples' step is not run where one's and two's say that it is over the budget."""
LINEARITY = 1.1
"""A step's bytes are at least those that two smaller ones say, on a straight line, divided by this."""
PARTS = 1.5
"""A step takes at least what one and two examples say of every storage, divided by this: some kernels work part by part."""


@dataclass(eq=False)
class _Prefix:
    """A frozen prefix: its peak bytes on one and on two examples, and its outputs' on one."""

    split: Split
    peaks: tuple[int, int]
    output_bytes: int
    outputs: list[Tensor] = field(default_factory=list)

    def first_outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the first examples; computed at the first request of so many."""
        if not self.outputs or len(self.outputs[0]) < len(x):
            self.outputs = in_chunks(self.split.prefix, x, AT_ONCE) or []
        return tuple(each[: len(x)] for each in self.outputs)

    def peak_bytes(self, examples: int, schedule: PrefixSchedule) -> int:
        """Return the most bytes alive while it runs on so many examples."""
        chunk = schedule.chunk
        first, second = self.peaks

        def at_once(count: int) -> int:
            return first + (second - first) * (count - 1) if count else 0

        if not chunk:
            return at_once(examples)
        # The whole batch's outputs are allocated after the first chunk.
        whole, chunk = examples * self.output_bytes, min(chunk, examples)
        following = at_once(min(chunk, examples - chunk))
        return max(at_once(chunk), whole + max(chunk * self.output_bytes, following))


class PeakPrediction:
    """Predicts peak bytes; steps are run with stand-ins for the methods, once for each structure and micro-batch.

    Exact for methods that keep their inputs; for others as exact as their working memory is known. Streams, tiles and other
    ways to run a step change what ``_levels`` runs, and nothing else.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.working, self.no_working = problem, WorkingMemory(), WorkingMemory(none=True)
        self._rooms: dict[int | None, PeakPrediction] = {problem.room: self}
        self._steps: dict[tuple[Structure, int, bool], StepLevels] = {}
        self._too_large: dict[tuple[Structure, int], bool] = {}
        self._prefixes: dict[Structure, _Prefix | None] = {}
        self._by_cut: dict[tuple[str, ...], _Prefix | None] = {}

    def in_room(self, room: int | None) -> "PeakPrediction":
        """Return the predictions of steps with so much room for the wide maps of blocks in streams."""
        if room not in self._rooms:
            other = PeakPrediction(replace(self.problem, room=room))
            other.working, other._rooms = self.working, self._rooms
            self._rooms[room] = other
        return self._rooms[room]

    def peak_bytes(self, methods: Methods, micro_batch: int, schedule: PrefixSchedule = WHOLE, least: bool = False) -> int:
        """Return the predicted peak bytes of a step.

        methods: by layer. schedule: of the frozen prefix; if that alone is over the budget, it is the prefix's peak. least:
        as if methods worked with nothing.
        """
        structure = self._structure(methods)
        working = self.no_working if least else self.working
        prefix, before = self._prefix(structure), 0
        if prefix is None:
            schedule = WHOLE
        elif not self.problem.within_budget(before := prefix.peak_bytes(micro_batch, schedule)):
            return before
        levels = self._levels(structure, micro_batch, chunked=schedule.chunk > 0)
        return max(before + levels.state_bytes(methods, working), levels.peak_bytes(methods, working))

    def schedule(self, rivals: Sequence[Methods], micro_batch: int) -> PrefixSchedule | None:
        """Return the fastest way to run the prefix with which one of the rivals may fit, None where none may."""
        structure = self._structure(rivals[0])
        for schedule in self.schedules(rivals[0], micro_batch):
            if self._is_too_large(structure, micro_batch):
                return None
            if any(self.may_fit(methods, micro_batch, schedule) for methods in rivals):
                return schedule
        return None

    def may_fit(self, methods: Methods, micro_batch: int, schedule: PrefixSchedule) -> bool:
        """Tell whether a step may be within the budget, as far as predictions are to be trusted."""
        if self._is_too_large(self._structure(methods), micro_batch):
            return False
        if all(method.traits.keeps_input for method in methods.values()):
            # What keeps its inputs is predicted to the byte.
            return self.problem.within_budget(self.peak_bytes(methods, micro_batch, schedule))
        # What methods work with is measured only where that may make the difference.
        sizes = (self.peak_bytes(methods, micro_batch, schedule, least) for least in (True, False))
        return all(self.problem.within_budget(int(size * SURE)) for size in sizes)

    def is_too_large(self, layers: Iterable[str], recompute: int, micro_batch: int) -> bool:
        """Tell whether a peak is over the budget whatever lossy methods these layers have, with ``recompute``."""
        structure = tuple((name, Lossy(recompute)) for name in sorted(layers))
        return self.problem.scope == "peak" and self._is_too_large(structure, micro_batch)

    def _is_too_large(self, structure: Structure, micro_batch: int) -> bool:
        """Tell whether one and two examples say that so many are over the budget, even where methods store nothing.

        At each moment the bytes grow by the same number with every example: the most of them by no less from two on.
        """
        budget, key = self.problem.budget, (structure, micro_batch)
        if budget is None:
            return False
        if key not in self._too_large:
            chunked = self._prefix(structure) is not None
            one = self._with_as_many_channels(micro_batch, 1)._levels(structure, 1, chunked)
            first = one.least_bytes
            self._too_large[key] = int(first * SURE) > budget
            if not self._too_large[key] and micro_batch >= FEW and first * micro_batch > budget:
                two = self._with_as_many_channels(micro_batch, 2)._levels(structure, 2, chunked)
                most = one.least_bytes_of(micro_batch, two) or 0
                least = first + (two.least_bytes - first) * (micro_batch - 1)
                self._too_large[key] = least > LINEARITY * budget or most > PARTS * budget
        return self._too_large[key]

    def _with_as_many_channels(self, micro_batch: int, examples: int) -> "PeakPrediction":
        """Return the predictions of the room in which fewer examples run as many channels at a time."""
        room = self.problem.room
        return self if room is None else self.in_room(max(1, room * examples // micro_batch))

    def rules_out(self, methods: Methods, micro_batch: int) -> bool:
        """Tell whether one and two examples' steps say that so many are over the budget."""
        return self._is_too_large(self._structure(methods), micro_batch)

    def schedules(self, methods: Methods, micro_batch: int) -> list[PrefixSchedule]:
        """Return how the prefix may run within the budget, the fastest first."""
        prefix, schedules = self._prefix(self._structure(methods)), self.all_schedules(methods, micro_batch)
        if prefix is None:
            return schedules
        return [each for each in schedules if self.problem.within_budget(prefix.peak_bytes(micro_batch, each))]

    def all_schedules(self, methods: Methods, micro_batch: int) -> list[PrefixSchedule]:
        """Return how the prefix may run under any budget, the fastest first."""
        if self.problem.scope == "saved" or self._prefix(self._structure(methods)) is None:
            return [WHOLE]
        return [WHOLE, *(PrefixSchedule(chunk) for chunk in powers_below(micro_batch))]

    def _prefix(self, structure: Structure) -> _Prefix | None:
        """Return the frozen prefix, None where there is none that may run in chunks; blocks in streams are run whole."""
        if self.problem.room is not None:
            return None
        if structure not in self._prefixes:
            parts = split(install(self.problem.model, self._stand_ins(structure, Calls()), room=self.problem.room))
            cut = () if parts is None else tuple(str(node.target) for node in parts.parts.before.nodes)
            cut += tuple(str(each) for _, each in structure if isinstance(each, Method))
            if cut not in self._by_cut:
                independent = parts is not None and examples_are_independent(parts, self.problem.x[:2])
                self._by_cut[cut] = self._measured(parts) if parts is not None and independent else None
            self._prefixes[structure] = self._by_cut[cut]
        return self._prefixes[structure]

    def _measured(self, parts: Split) -> _Prefix:
        peaks = []
        for count in (1, 2):
            x, _ = self.problem.examples(count)
            with followed(parts.model, inputs=(x,)) as ledger, torch.no_grad():
                values = parts.prefix(x)
            peaks.append(_peak(ledger))
        new = [value for value in values if value.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()]
        return _Prefix(parts, (peaks[0], peaks[-1]), stored_bytes(new) // count)

    def _levels(self, structure: Structure, micro_batch: int, chunked: bool) -> StepLevels:
        """Return the levels of a step, from the images, or from the outputs of a prefix that ran in chunks."""
        key = structure, micro_batch, chunked
        if key not in self._steps:
            calls, problem = Calls(), self.problem
            prefix = self._prefix(structure)
            masked_by = mask_readers(problem.plain_model, dict(structure))
            model = install(problem.model, self._stand_ins(structure, calls), room=problem.room)
            x, y = problem.examples(micro_batch)
            inputs: Inputs = x
            if chunked:
                assert prefix is not None
                inputs = PrefixOutputs(prefix.split, prefix.first_outputs(x)).under(model)
            given = inputs.values if isinstance(inputs, PrefixOutputs) else ()
            with followed(model, inputs=(x, y, given)) as calls.ledger:
                add_gradient(model, inputs, y, problem.batch_size, problem.loss)
            model.zero_grad()
            self._steps[key] = step_levels(calls.ledger, calls, masked_by, x.element_size())
            calls.ledger = None
        return self._steps[key]

    def _structure(self, methods: Methods) -> Structure:
        return structure_of(methods, self.problem.room is not None)

    def _stand_ins(self, structure: Structure, calls: Calls) -> dict[str, Method]:
        return {
            name: StandIn(name, calls, each.by_channels, derive=each.recompute) if isinstance(each, Lossy) else each
            for name, each in structure
        }


def powers_below(count: int) -> list[int]:
    """Return the powers of two below a number, the largest first; 1 for 1.

    >>> powers_below(16), powers_below(5), powers_below(1)
    ([8, 4, 2, 1], [4, 2, 1], [1])
    """
    return [2**power for power in range(max(1, (count - 1).bit_length()) - 1, -1, -1)]


def _peak(ledger: Ledger) -> int:
    return peak((life.birth, life.death, life.size) for life in counted(ledger.lifetimes))[0]
