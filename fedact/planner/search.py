"""The search over depths, whatever a solver may choose at a depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fedact.measure.memory import Memory
from fedact.planner.observed_step import ObservedStep
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem, Schedule
from fedact.planner.step_error import StepError

USUAL_DEPTH = 8
"""Trained convolutions where no trial chose: never below the head alone in hand searches (docs/planner.md)."""
MOST_ERROR = 0.5
"""The most ||g' - g||^2 / ||g||^2 of a layer, on average, with which a depth is trained that the plan chooses."""


class Solution(NamedTuple):
    """Methods and a micro-batch for a depth, with the measured memory of their step.

    input_errors: each saved input's part of the gradient error, where it is known. prefix: how the frozen
    prefix runs. slowdown: relative to plain training, where it was timed. caps: the share
    of the examples' variance that the ranks of a given variance are capped at, None where they are not. step_error: of the
    step itself, where it was measured: the inputs' parts are an estimate. observed: what else the measured step showed.
    room: bytes for the wide maps of blocks in streams, None where none are.
    """

    depth: int
    micro_batch: int
    methods: Methods
    memory: Memory
    input_errors: Mapping[str, float]
    prefix: PrefixSchedule = WHOLE
    slowdown: float | None = None
    caps: float | None = None
    step_error: StepError | None = None
    observed: ObservedStep | None = None
    room: int | None = None

    @property
    def error(self) -> float:
        """The sum of the saved inputs' parts."""
        return sum(self.input_errors.values())


class Solver(Protocol):
    """Finds the best step at a depth: by choosing settings, or the size of the micro-batch alone."""

    @property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes."""

    @property
    def may_stream(self) -> bool:
        """Whether blocks may run in streams."""

    def seconds(self, depth: int, schedule: Schedule) -> float:
        """Return the estimated seconds of a batch."""

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        """Return estimated gradient errors by trained layer, None where no step fits the budget."""

    def solve(self, depth: int) -> Solution | None:
        """Return the best step that was measured to fit the budget, None where none does."""

    def smallest(self, depth: int) -> list[tuple[Schedule, Methods]]:
        """Return candidates for the step with the fewest bytes."""


@dataclass(frozen=True)
class Depths:
    """Numbers of trained convolutions, the preferred first; without a budget it is the one that is trained.

    may_shrink: whether others than the first may be trained, but for the head alone.
    """

    candidates: tuple[int, ...]
    may_shrink: bool = False

    @property
    def requested(self) -> int:
        return self.candidates[0]


def depths_for(problem: Problem, layers: int | str, most: int | None = None) -> Depths:
    """Return the given depth alone, or for "auto" one of at most ``most`` convolutions and all candidates below it.

    most: ``USUAL_DEPTH`` where nothing is known; 0 is the head alone.
    """
    depths = problem.depths(layers)
    if layers != "auto":
        return Depths((depths[0],))
    deepest = min(USUAL_DEPTH if most is None else most, depths[-1])
    if deepest < depths[0]:
        return Depths((0,)) if problem.has_head else Depths((depths[0],), may_shrink=True)
    return Depths(tuple(reversed(candidate_depths(range(depths[0], deepest + 1)))), may_shrink=True)


def candidate_depths(depths: Sequence[int]) -> list[int]:
    """Return every fourth of the depths, with the first three and the last.

    >>> candidate_depths(range(1, 11))
    [1, 2, 3, 4, 8, 10]
    """
    return [depth for depth in depths if depth < 4 or depth % 4 == 0 or depth == depths[-1]]


def search(problem: Problem, depths: Depths, solver: Solver) -> Solution | None:
    """Return the solution at the first depth, else at the next smaller one, else for the head alone; None where none fits.

    A smaller depth is also taken where the budget allows only gradients with more error than signal.
    """
    head = [0] if problem.has_head and depths.requested else []
    for depth in [*depths.candidates, *head]:
        free = depths.may_shrink and depth
        if (not free or is_worth_it(solver.expected_errors(depth))) and (solution := solver.solve(depth)):
            return solution
    return None


def is_worth_it(errors: Mapping[str, float] | None) -> bool:
    """Tell whether a step fits the budget whose gradient has less error than signal, on average over the trained layers."""
    return errors is not None and sum(errors.values()) <= MOST_ERROR * len(errors)
