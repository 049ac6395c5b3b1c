"""The search over depths, whatever a solver may choose at a depth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fedact.measure.memory import Memory
from fedact.planner.depth import candidate_depths, squared_gradient_norms, sufficient_depth
from fedact.planner.problem import Methods, Problem

EXAMPLES, ELEMENTS = 32, 64_000_000
"""Gradient norms are measured on so many examples, fewer where their saved inputs have more elements in all."""


class Solution(NamedTuple):
    """Methods and a micro-batch for a depth, with the measured memory of their step.

    input_errors: each saved input's part of the gradient error, where it is known. prefix_chunk: examples at a time through
    the frozen prefix, 0 for all of a micro-batch. slowdown: relative to plain training, where it was timed.
    """

    depth: int
    micro_batch: int
    methods: Methods
    memory: Memory
    input_errors: Mapping[str, float]
    prefix_chunk: int = 0
    slowdown: float | None = None

    @property
    def error(self) -> float:
        """The sum of the saved inputs' parts."""
        return sum(self.input_errors.values())


class Solver(Protocol):
    """Finds the best step at a depth: by choosing settings, or the size of the micro-batch alone."""

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        """Return estimated gradient errors by trained layer, None where no step fits the budget."""

    def solve(self, depth: int) -> Solution | None:
        """Return the best step that was measured to fit the budget, None where none does."""

    def smallest_methods(self, depth: int) -> list[Methods]:
        """Return candidates for the step with the fewest bytes."""


@dataclass(frozen=True)
class Depths:
    """Numbers of trained convolutions, in rising order; ``requested`` is the one that a boundless budget would get.

    squared_norms: of the layers' gradients, where the plan chooses the depth; empty where it was given.
    """

    requested: int
    candidates: tuple[int, ...]
    squared_norms: Mapping[str, float] = field(default_factory=dict)


def depths_for(problem: Problem, layers: int | str) -> Depths:
    """Return the given depth, or for "auto" the sufficient one for exact gradients, and all candidates below it."""
    depths = problem.depths(layers)
    if layers != "auto":
        return Depths(depths[0], (depths[0],))
    examples = problem.examples(problem.example_count(problem.trained(depths[-1]), EXAMPLES, ELEMENTS, least=2))
    norms = squared_gradient_norms(problem.model, examples, problem.trained_in_order(depths[-1]), problem.loss)
    exact = {depth: dict.fromkeys(problem.trained_in_order(depth), 0.0) for depth in candidate_depths(depths)}
    requested = sufficient_depth(exact, norms)
    assert requested is not None
    return Depths(requested, tuple(depth for depth in exact if depth <= requested), norms)


def search(problem: Problem, depths: Depths, solver: Solver) -> Solution | None:
    """Return the solution at the best depth, else at the next smaller one, else for the head alone; None where none fits."""
    order = [depths.requested]
    if depths.squared_norms:
        errors = {depth: found for depth in depths.candidates if (found := solver.expected_errors(depth)) is not None}
        best = sufficient_depth(errors, depths.squared_norms, share=1.0) or 0
        order = [depth for depth in reversed(depths.candidates) if depth <= best]
    if problem.has_head and depths.requested:
        order.append(0)
    return next((solution for depth in order if (solution := solver.solve(depth))), None)
