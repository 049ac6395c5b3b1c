"""Planner for a method with all its settings given: only rank caps, micro-batch, recompute and depth give way."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import product

from torch import Tensor

from fedact.compression import check_for, make_method
from fedact.nn.surgery import assign
from fedact.planner.family import NO_POSITIONS
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem, Schedule
from fedact.planner.profiles import Profiles
from fedact.planner.saved_prediction import SavedPrediction
from fedact.planner.schedules import Schedules
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_within_budget
from fedact.planner.step_structure import layers_with_input


class FixedMethodSearch:
    """Finds the preferred schedule that fits the budget, caps on ranks giving way before it, and the gentlest caps for it.

    A method with loss makes something again only where not even one example at a time fits without.
    """

    def __init__(self, problem: Problem, deepest: int, limit: SlowdownLimit) -> None:
        self.problem, self.deepest, self.limit = problem, deepest, limit
        self.saved: dict[int, SavedPrediction] = {}
        self._solutions: dict[int, Solution | None] = {}

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        # The error of a given method is what was asked for: it does not count against a depth.
        return dict.fromkeys(self.problem.trained_in_order(depth), 0.0) if self.solve(depth) else None

    def solve(self, depth: int) -> Solution | None:
        if depth not in self._solutions:
            found = (self._solve(depth, schedule) for schedule in self._that_may_fit(depth))
            self._solutions[depth] = next(filter(None, found), None)
        return self._solutions[depth]

    def _that_may_fit(self, depth: int) -> Iterator[Schedule]:
        """Yield the schedules that may be within the budget, the preferred first."""
        if self.problem.scope == "saved":
            every = self.schedules.preferred_first(depth)
            return (each for each in every if self._leaves_room(depth, each.micro_batch, each.recompute))
        method, layers = make_method(self.problem.method), layers_with_input(self.problem, depth)

        def kept_by(recompute: int) -> Methods:
            return dict.fromkeys(layers, method.recomputing(recompute))

        return self.schedules.that_may_fit(depth, self.peaks, kept_by if method.traits.keeps_input else None)

    def _solve(self, depth: int, schedule: Schedule) -> Solution | None:
        """Return the step of one schedule with the gentlest caps that fit, None where none do."""
        problem, size, room = replace(self.problem, room=schedule.room), schedule.micro_batch, schedule.room
        levels = self._levels(depth, schedule)
        for prefix, (level, methods) in product(self._prefixes(levels[0][1], schedule), levels):
            if self._may_fit(depth, methods, schedule, prefix):
                memory, caps = measure_within_budget(problem, methods, size, prefix), level if level < 1.0 else None
                solution = Solution(depth, size, methods, memory, {}, prefix, caps=caps, room=room)
                if self.problem.fits(memory) and (admitted := self.limit.admit(solution)):
                    return admitted
        return None

    @property
    def may_stream(self) -> bool:
        """Whether blocks may run in streams."""
        return bool(self.schedules.rooms)

    def seconds(self, depth: int, schedule: Schedule) -> float:
        return self.schedules.seconds(schedule, depth)

    def smallest(self, depth: int) -> list[tuple[Schedule, Methods]]:
        ones = self.schedules.of_one(depth)
        return [(schedule, methods) for schedule in ones for _, methods in self._levels(depth, schedule)]

    def _prefixes(self, methods: Methods, schedule: Schedule) -> list[PrefixSchedule]:
        """Return how the frozen prefix may run."""
        if self.problem.scope == "saved":
            return [WHOLE]
        return self.peaks.in_room(schedule.room).schedules(methods, schedule.micro_batch)

    def _leaves_room(self, depth: int, micro_batch: int, recompute: int) -> bool:
        """Tell whether what is saved beside inputs with loss leaves room for them in a budget of saved bytes."""
        method, budget = make_method(self.problem.method), self.problem.budget
        if self.problem.scope != "saved" or budget is None or method.traits.keeps_input:
            return True
        return self._saved(depth).structure(recompute).least_bytes(depth, micro_batch) <= budget

    def _may_fit(self, depth: int, methods: Methods, schedule: Schedule, prefix: PrefixSchedule) -> bool:
        """Tell whether a step is worth measuring."""
        if self.problem.budget is None:
            return True
        if self.problem.scope == "saved":
            return self._saved(depth).may_fit(methods, schedule.micro_batch)
        return self.peaks.in_room(schedule.room).may_fit(methods, schedule.micro_batch, prefix)

    def _saved(self, depth: int) -> SavedPrediction:
        if depth not in self.saved:
            self.saved[depth] = SavedPrediction(self.problem, depth)
        return self.saved[depth]

    @cached_property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes."""
        return PeakPrediction(self.problem)

    @cached_property
    def schedules(self) -> Schedules:
        """How a batch may be run."""
        return Schedules(self.problem, Profiles(self.problem, self.deepest))

    def _levels(self, depth: int, schedule: Schedule) -> list[tuple[float, Methods]]:
        """Return the methods of all saved inputs at each level of their caps, the gentlest first."""
        problem, method = self.problem, make_method(self.problem.method).recomputing(schedule.recompute)
        count = problem.batch_size if method.traits.calibrated else schedule.micro_batch
        inputs = problem.inputs(problem.trained(depth), count)
        assigned = assign(problem.model, inputs, method)
        methods = {name: assigned[name].for_dimensions(x.dim()) for name, x in inputs.items()}
        if several := {x.dim() for x in inputs.values() if x.dim() > NO_POSITIONS}:
            check_for(method.codec, *sorted(several))
        if problem.budget is None:
            return [(1.0, methods)]
        if schedule.room is not None:
            inputs |= self._origins(depth, schedule, inputs)
        ladders = {name: method.levels(inputs[name]) for name, method in methods.items()}
        return [(level, {name: one[level] for name, one in ladders.items()}) for level in next(iter(ladders.values()))]

    def _origins(self, depth: int, schedule: Schedule, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, by layer, the saved input that its own is made from in a step in streams."""
        saved = self.schedules.profiles.structure(schedule.recompute, depth, schedule.in_streams).saved_inputs(depth)
        missing = [each.key for each in saved if each.key not in inputs]
        count = len(next(iter(inputs.values())))
        found = {**inputs, **(self.problem.inputs([*self.problem.trained(depth), *missing], count) if missing else {})}
        return {name: found[each.key] for each in saved for name in each.layers}
