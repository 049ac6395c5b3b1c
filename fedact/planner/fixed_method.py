"""Planner for a method with all its settings given: only rank caps, micro-batch, recompute and depth give way."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import product

from fedact.compression import make_method
from fedact.nn.surgery import assign
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem
from fedact.planner.saved_prediction import SavedPrediction
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_within_budget
from fedact.planner.step_structure import distinct_recomputes


class FixedMethodSearch:
    """Finds the largest micro-batch that fits the budget, caps on ranks giving way before it, and the gentlest caps for it.

    Inputs are made again only where not even one example at a time fits without.

    It remembers the least depth that does not fit.
    """

    def __init__(self, problem: Problem, limit: SlowdownLimit) -> None:
        self.problem, self.limit = problem, limit
        self.too_deep = float("inf")
        self.saved: dict[int, SavedPrediction] = {}

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        if depth < self.too_deep and not self._fits(depth):
            self.too_deep = depth
        # The error of a given method is what was asked for: it does not count against a depth.
        return dict.fromkeys(self.problem.trained_in_order(depth), 0.0) if depth < self.too_deep else None

    def solve(self, depth: int) -> Solution | None:
        found = (self._solve(depth, recompute) for recompute in self._recomputes(depth))
        return next(filter(None, found), None)

    def _solve(self, depth: int, recompute: int) -> Solution | None:
        for micro_batch in self.problem.micro_batches():
            if not self._leaves_room(depth, micro_batch, recompute):
                continue
            levels = self._levels(depth, micro_batch, recompute)
            schedules = self._schedules(levels[0][1], micro_batch)
            for prefix, (level, methods) in product(schedules, levels):
                if self._may_fit(depth, methods, micro_batch, prefix):
                    memory = measure_within_budget(self.problem, methods, micro_batch, prefix)
                    solution = Solution(depth, micro_batch, methods, memory, {}, prefix, caps=level if level < 1.0 else None)
                    if self.problem.fits(memory) and (admitted := self.limit.admit(solution)):
                        return admitted
        return None

    def smallest_methods(self, depth: int) -> list[Methods]:
        found = (self._levels(depth, 1, recompute) for recompute in self._recomputes(depth))
        return [methods for levels in found for _, methods in levels]

    def _recomputes(self, depth: int) -> Iterator[int]:
        """Yield what may be made again at a depth, the preferred first, and each but once."""
        return distinct_recomputes(self.problem, self._saved(depth).structure)

    def _fits(self, depth: int) -> bool:
        """Tell whether one example at a time fits with the tightest caps."""
        return self.problem.budget is None or any(self._fits_with(depth, each) for each in self._recomputes(depth))

    def _fits_with(self, depth: int, recompute: int) -> bool:
        _, methods = self._levels(depth, 1, recompute)[-1]
        schedules = [each for each in self._schedules(methods, 1) if self._may_fit(depth, methods, 1, each)]
        return any(self.problem.fits(measure_within_budget(self.problem, methods, 1, each)) for each in schedules)

    def _schedules(self, methods: Methods, micro_batch: int) -> list[PrefixSchedule]:
        """Return how the frozen prefix may run."""
        return [WHOLE] if self.problem.scope == "saved" else self.peaks.schedules(methods, micro_batch)

    def _leaves_room(self, depth: int, micro_batch: int, recompute: int) -> bool:
        """Tell whether what is saved beside inputs with loss leaves room for them in a budget of saved bytes."""
        method, budget = make_method(self.problem.method), self.problem.budget
        if self.problem.scope != "saved" or budget is None or method.traits.keeps_input:
            return True
        return self._saved(depth).structure(recompute).least_bytes(depth, micro_batch) <= budget

    def _may_fit(self, depth: int, methods: Methods, micro_batch: int, prefix: PrefixSchedule) -> bool:
        """Tell whether a step is worth measuring."""
        if self.problem.budget is None:
            return True
        if self.problem.scope == "saved":
            return self._saved(depth).may_fit(methods, micro_batch)
        return self.peaks.may_fit(methods, micro_batch, prefix)

    def _saved(self, depth: int) -> SavedPrediction:
        if depth not in self.saved:
            self.saved[depth] = SavedPrediction(self.problem, depth)
        return self.saved[depth]

    @cached_property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes."""
        return PeakPrediction(self.problem)

    def _levels(self, depth: int, micro_batch: int, recompute: int) -> list[tuple[float, Methods]]:
        """Return the methods of all saved inputs at each level of their caps, the gentlest first."""
        problem, method = self.problem, make_method(self.problem.method).recomputing(recompute)
        inputs = problem.inputs(problem.trained(depth), problem.batch_size if method.traits.calibrated else micro_batch)
        assigned = assign(problem.model, inputs, method)
        methods = {name: assigned[name].for_dimensions(x.dim()) for name, x in inputs.items()}
        if problem.budget is None:
            return [(1.0, methods)]
        ladders = {name: method.levels(inputs[name]) for name, method in methods.items()}
        return [(level, {name: one[level] for name, one in ladders.items()}) for level in next(iter(ladders.values()))]
