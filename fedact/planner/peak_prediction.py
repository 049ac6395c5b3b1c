"""Peak bytes of a step under any methods, predicted from one step's shapes and lifetimes: no step is run for a candidate."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from fedact.compression import Method
from fedact.measure.memory import followed
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.nn.layers import LeanAttention, known_attention
from fedact.nn.prefix.split import PrefixOutputs, split
from fedact.nn.surgery import install
from fedact.planner.prefix_prediction import Cut, Prefix
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem
from fedact.planner.stand_in import Calls, Lossy, StandIn, Structure, structure_of
from fedact.planner.step_levels import StepLevels, mask_readers, step_levels
from fedact.planner.working_memory import WorkingMemory

SURE = 0.98
"""A step that is predicted to take the budget divided by this may still be within it."""
FEW = 3
"""So many examples' step is not run where one's and two's say that it is over the budget."""
SMALL = 32 * 3 * 64 * 64
"""Of images with no more elements in all, the whole batch's step is run instead of two examples': a part of it takes at
least that part of its bytes, where two examples' may be much the same as one's."""
LINEARITY = 1.1
"""A step's bytes are at least those that two smaller ones say, on a straight line, divided by this."""
PARTS = 1.5
"""A step takes at least what one and two examples say of every storage, divided by this: some kernels work part by part.
In streams the parts are the same."""


class PeakPrediction:
    """Predicts peak bytes; steps are run with stand-ins for the methods, once for each structure and micro-batch.

    Exact for methods that keep their inputs; for others as exact as their working memory is known. Streams, tiles and other
    ways to run a step change what ``_levels`` runs, and nothing else.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.working, self.no_working = problem, WorkingMemory(), WorkingMemory(none=True)
        self._rooms: dict[int | None, PeakPrediction] = {problem.room: self}
        self._steps: dict[tuple[Structure, int, bool], StepLevels] = {}
        self._bounds: dict[tuple[Structure, int], float] = {}
        self._cuts: dict[tuple[Structure, bool], Cut | None] = {}
        self._by_names: dict[tuple[Any, ...], Cut | None] = {}
        self._prefixes: dict[Cut, Prefix] = {}

    def in_room(self, room: int | None) -> "PeakPrediction":
        """Return the predictions of steps with so much room for the wide maps of blocks in streams."""
        if room not in self._rooms:
            other = PeakPrediction(replace(self.problem, room=room))
            other.working, other._rooms = self.working, self._rooms
            other._cuts, other._by_names = self._cuts, self._by_names
            self._rooms[room] = other
        return self._rooms[room]

    def peak_bytes(self, methods: Methods, micro_batch: int, schedule: PrefixSchedule = WHOLE, least: bool = False) -> int:
        """Return the predicted peak bytes of a step.

        methods: by layer. schedule: of the frozen prefix; if that alone is over the budget, it is the prefix's peak. least:
        as if methods worked with nothing.
        """
        prefix, before = self._prefix(self._structure(methods)), 0
        if prefix is None:
            schedule = WHOLE
        elif not self.problem.within_budget(before := prefix.peak_bytes(micro_batch, schedule)):
            return before
        return self._after(before, methods, micro_batch, schedule, least)

    def least_bytes(self, methods: Methods, micro_batch: int) -> int:
        """Return the predicted peak bytes of a step whose prefix runs in the fewest, over the budget or not."""
        prefix, schedule = self._prefix(self._structure(methods)), self.least_schedule(methods, micro_batch)
        before = 0 if prefix is None else prefix.peak_bytes(micro_batch, schedule)
        return self._after(before, methods, micro_batch, schedule)

    def _after(self, before: int, methods: Methods, micro_batch: int, schedule: PrefixSchedule, least: bool = False) -> int:
        """Return the peak bytes of a step whose prefix takes so many."""
        working = self.no_working if least else self.working
        levels = self._levels(self._structure(methods), micro_batch, chunked=schedule != WHOLE)
        return max(before + levels.state_bytes(methods, working), levels.peak_bytes(methods, working))

    def schedule(self, rivals: Sequence[Methods], micro_batch: int) -> PrefixSchedule | None:
        """Return the fastest way to run the prefix with which one of the rivals may fit, None where none may."""
        structure = self._structure(rivals[0])
        stateless = not any(method.traits.reads_state for methods in rivals for method in methods.values())
        for schedule in self._within(rivals[0], micro_batch):
            if self._is_too_large(structure, micro_batch):
                return None
            if any(self.may_fit(methods, micro_batch, schedule) for methods in rivals):
                return schedule
            if schedule != WHOLE and stateless:
                # What follows the prefix takes as much after any other.
                return None
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
        """Tell whether one and two examples say that so many are over the budget, even where methods store nothing."""
        budget, room, key = self.problem.budget, self.problem.room, (structure, micro_batch)
        if budget is None:
            return False
        if key not in self._bounds and room is not None:
            # Less room spares no more than all of the wide maps.
            more = [(size, other) for size, other in self._rooms.items() if size is not None and size > room]
            if any(other._bounds.get(key, 0) - size > budget for size, other in more):
                return True
        return self.lower_bound(structure, micro_batch) > budget

    def lower_bound(self, structure: Structure, micro_batch: int) -> float:
        """Return fewer bytes than a step takes, roughly if that is within the budget.

        At each moment the bytes grow by the same number with every example: the most of them by no less from two on.
        """
        budget, key = self.problem.budget or 0, (structure, micro_batch)
        if key not in self._bounds:
            chunked = self._prefix(structure) is not None
            one = self._with_as_many_channels(micro_batch, 1)._levels(structure, 1, chunked)
            first = one.least_bytes
            bounds: list[float] = [int(first * SURE)]
            if bounds[0] <= budget and self.problem.x.numel() <= SMALL:
                whole = self.problem.batch_size
                most = self._with_as_many_channels(micro_batch, whole)._levels(structure, whole, chunked).least_bytes
                bounds.append(most * micro_batch / whole / LINEARITY)
            elif micro_batch >= FEW and bounds[0] <= budget < first * micro_batch and self._is_linear:
                two = self._with_as_many_channels(micro_batch, 2)._levels(structure, 2, chunked)
                grown = one.least_bytes_of(micro_batch, two) or 0
                bounds.append(grown / (PARTS if self.problem.room is None else LINEARITY))
                bounds.append((first + (two.least_bytes - first) * (micro_batch - 1)) / LINEARITY)
            self._bounds[key] = max(bounds)
        return self._bounds[key]

    @cached_property
    def _is_linear(self) -> bool:
        """Whether every example adds as many bytes: attention works on groups of examples."""
        kinds = nn.MultiheadAttention, LeanAttention
        return not any(isinstance(each, kinds) or known_attention(each) for each in self.problem.model.modules())

    def _with_as_many_channels(self, micro_batch: int, examples: int) -> "PeakPrediction":
        """Return the predictions of the room in which fewer examples run as many channels at a time."""
        room = self.problem.room
        return self if room is None else self.in_room(max(1, room * examples // micro_batch))

    def rules_out(self, methods: Methods, micro_batch: int) -> bool:
        """Tell whether one and two examples' steps say that so many are over the budget."""
        return self._is_too_large(self._structure(methods), micro_batch)

    def schedules(self, methods: Methods, micro_batch: int) -> list[PrefixSchedule]:
        """Return how the prefix may run within the budget, the fastest first."""
        return list(self._within(methods, micro_batch))

    def _within(self, methods: Methods, micro_batch: int) -> Iterator[PrefixSchedule]:
        prefix = None if self.problem.scope == "saved" else self._prefix(self._structure(methods))
        return iter([WHOLE]) if prefix is None else prefix.within(self.problem.within_budget, micro_batch)

    def least_schedule(self, methods: Methods, micro_batch: int) -> PrefixSchedule:
        """Return how the prefix runs in the fewest bytes."""
        prefix = None if self.problem.scope == "saved" else self._prefix(self._structure(methods))
        return WHOLE if prefix is None else prefix.least(micro_batch)

    def least_inference(self, methods: Methods) -> tuple[int, str]:
        """Return the fewest bytes of the frozen prefix on one example, and how, in words; none where it runs whole."""
        prefix = self._prefix(self._structure(methods))
        return (0, "") if prefix is None else prefix.in_words()

    def _prefix(self, structure: Structure) -> Prefix | None:
        """Return the frozen prefix, None where there is none that may run in chunks or in tiles."""
        cut = self._cut(structure)
        if cut is None:
            return None
        if cut not in self._prefixes:
            self._prefixes[cut] = Prefix(cut, self.problem.room)
        return self._prefixes[cut]

    def _cut(self, structure: Structure) -> Cut | None:
        in_streams = self.problem.room is not None
        if (structure, in_streams) not in self._cuts:

            def installed(room: int | None) -> nn.Module:
                return install(self.problem.model, self._stand_ins(structure, Calls()), room=room)

            parts = split(installed(self.problem.room))
            nodes = () if parts is None else tuple(str(node.target) for node in parts.parts.before.nodes)
            names = nodes, tuple(str(each) for _, each in structure if isinstance(each, Method)), in_streams
            if names not in self._by_names:
                cut = None if parts is None else Cut(self.problem, parts, installed)
                self._by_names[names] = cut if cut is not None and cut.is_independent else None
            self._cuts[structure, in_streams] = self._by_names[names]
        return self._cuts[structure, in_streams]

    def _levels(self, structure: Structure, micro_batch: int, chunked: bool) -> StepLevels:
        """Return the levels of a step, from the images, or from the outputs of a prefix that ran in chunks."""
        key = structure, micro_batch, chunked
        if key not in self._steps:
            calls, problem = Calls(), self.problem
            masked_by = mask_readers(problem.plain_model, dict(structure))
            x, y = problem.examples(micro_batch)
            cut = self._cut(structure) if chunked else None
            given = () if cut is None else cut.outputs(x)
            model = install(problem.model, self._stand_ins(structure, calls), room=problem.room)
            inputs: Inputs = x if cut is None else PrefixOutputs(cut.split, given).under(model)
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
