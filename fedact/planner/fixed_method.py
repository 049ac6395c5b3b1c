"""Planner for a method with all its settings given: only micro-batch, depth and rank caps may shrink."""

from collections.abc import Mapping
from itertools import product

from fedact.compression import make_method
from fedact.nn.surgery import assign
from fedact.planner.problem import Methods, Problem, measure_within_budget
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit

GENTLE = 0.95
"""Caps below this explained variance are tried only where no micro-batch fits with caps of at least this."""


class FixedMethodSearch:
    """Finds the largest micro-batch that fits the budget; it remembers the least depth that does not."""

    def __init__(self, problem: Problem, limit: SlowdownLimit) -> None:
        self.problem, self.limit = problem, limit
        self.too_deep = float("inf")

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        if depth < self.too_deep and not self._fits(depth):
            self.too_deep = depth
        # The error of a given method is what was asked for: it does not count against a depth.
        return dict.fromkeys(self.problem.trained_in_order(depth), 0.0) if depth < self.too_deep else None

    def solve(self, depth: int) -> Solution | None:
        levels: dict[int, list[tuple[float, Methods]]] = {}
        sizes = [(size, chunk) for size in self.problem.micro_batches() for chunk in self.problem.prefix_chunks(depth, size)]
        for gentle, (micro_batch, chunk) in product((True, False), sizes):
            if micro_batch not in levels:
                levels[micro_batch] = self._levels(depth, micro_batch)
            for level, methods in levels[micro_batch]:
                if (level >= GENTLE) == gentle:
                    memory = measure_within_budget(self.problem, methods, micro_batch, chunk)
                    solution = Solution(depth, micro_batch, methods, memory, {}, chunk)
                    if self.problem.fits(memory) and (admitted := self.limit.admit(solution)):
                        return admitted
        return None

    def smallest_methods(self, depth: int) -> list[Methods]:
        return [methods for _, methods in self._levels(depth, 1)]

    def _fits(self, depth: int) -> bool:
        """Tell whether one example at a time fits with the tightest caps."""
        if self.problem.budget is None:
            return True
        _, methods = self._levels(depth, 1)[-1]
        chunks = self.problem.prefix_chunks(depth, 1)
        return any(self.problem.fits(measure_within_budget(self.problem, methods, 1, chunk)) for chunk in chunks)

    def _levels(self, depth: int, micro_batch: int) -> list[tuple[float, Methods]]:
        """Return the methods of all saved inputs at each level of their caps, the gentlest first."""
        problem, method = self.problem, make_method(self.problem.method)
        inputs = problem.inputs(problem.trained(depth), problem.batch_size if method.traits.calibrated else micro_batch)
        assigned = assign(problem.model, inputs, method)
        methods = {name: assigned[name].for_dimensions(x.dim()) for name, x in inputs.items()}
        if problem.budget is None:
            return [(1.0, methods)]
        ladders = {name: method.levels(inputs[name]) for name, method in methods.items()}
        return [(level, {name: one[level] for name, one in ladders.items()}) for level in next(iter(ladders.values()))]
