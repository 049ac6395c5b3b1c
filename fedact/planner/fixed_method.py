"""Settings that were given: only the micro-batch and the layers give way, and the caps of what follows the data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from fedact.compression import make_method
from fedact.nn.surgery import assign
from fedact.planner.problem import Methods, Problem, measure_fitting
from fedact.planner.search import Found
from fedact.planner.slowdown import Pace

GENTLE = 0.95
"""Caps first allow this much explained variance at every micro-batch, and less only where no micro-batch allows it."""


@dataclass(eq=False)
class GivingWay:
    """Chooses the largest micro-batch that keeps the budget."""

    problem: Problem
    pace: Pace
    too_deep: float = field(default=float("inf"), init=False)
    """A depth that does not fit; no deeper one does."""

    def errors_at(self, depth: int) -> Mapping[str, float] | None:
        if depth < self.too_deep and not self._fits(depth):
            self.too_deep = depth
        # What a given method does to the gradient is what was asked for.
        return dict.fromkeys(self.problem.in_order(depth), 0.0) if depth < self.too_deep else None

    def at(self, depth: int) -> Found | None:
        levels: dict[int, list[tuple[float, Methods]]] = {}
        for gentle, (micro_batch, chunk) in product((True, False), self._sizes(depth)):
            if micro_batch not in levels:
                levels[micro_batch] = self._levels(depth, micro_batch)
            for level, methods in levels[micro_batch]:
                found = self._kept(depth, micro_batch, chunk, methods) if (level >= GENTLE) == gentle else None
                if found:
                    return found
        return None

    def coarsest(self, depth: int) -> list[Methods]:
        return [methods for _, methods in self._levels(depth, 1)]

    def _fits(self, depth: int) -> bool:
        if self.problem.budget is None:
            return True
        _, methods = self._levels(depth, 1)[-1]
        chunks = self.problem.chunks(depth, 1)
        return any(self.problem.fits(measure_fitting(self.problem, methods, 1, chunk)) for chunk in chunks)

    def _sizes(self, depth: int) -> Iterator[tuple[int, int]]:
        """Yield micro-batches with how many examples the frozen part is run on at a time, the largest first."""
        for micro_batch in self.problem.halvings():
            for chunk in self.problem.chunks(depth, micro_batch):
                yield micro_batch, chunk

    def _levels(self, depth: int, micro_batch: int) -> list[tuple[float, Methods]]:
        """Return the methods of all kept tensors at each level, the gentlest first."""
        problem, method = self.problem, make_method(self.problem.method)
        inputs = problem.inputs(problem.trained(depth), problem.batch_size if method.traits.calibrated else micro_batch)
        assigned = assign(problem.model, inputs, method)
        methods = {name: assigned[name].for_dimensions(x.dim()) for name, x in inputs.items()}
        if problem.budget is None:
            return [(1.0, methods)]
        ladders = {name: each.levels(inputs[name]) for name, each in methods.items()}
        return [(level, {name: one[level] for name, one in ladders.items()}) for level in next(iter(ladders.values()))]

    def _kept(self, depth: int, micro_batch: int, chunk: int, methods: Methods) -> Found | None:
        memory = measure_fitting(self.problem, methods, micro_batch, chunk)
        found = Found(depth, micro_batch, methods, memory, {}, chunk)
        return self.pace.kept(found) if self.problem.fits(memory) else None
