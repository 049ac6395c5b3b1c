"""Solvers for an update that trains parts of layers: each depth has a copy of the model, its last layers adapted."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedact.nn.adaptation import adapt, draw_second_factors
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem, Schedule
from fedact.planner.search import Solution, Solver


class AdaptedDepths:
    """A solver whose depths are problems of their own; make: returns the solver of one, up to that depth."""

    def __init__(self, problem: Problem, make: Callable[[Problem, int], Solver]) -> None:
        self.problem, self.make = problem, make
        self._problems: dict[int, Problem] = {}
        self._solvers: dict[int, Solver] = {}

    def problem_at(self, depth: int) -> Problem:
        """Return the problem of a depth."""
        if depth not in self._problems:
            self._problems[depth] = adapted(self.problem, depth)
        return self._problems[depth]

    def at(self, depth: int) -> Solver:
        """Return the solver of a depth."""
        if depth not in self._solvers:
            self._solvers[depth] = self.make(self.problem_at(depth), depth)
        return self._solvers[depth]

    @property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes of the head alone."""
        return self.at(0).peaks

    @property
    def may_stream(self) -> bool:
        """Whether blocks may run in streams: whole layers are trained there alone."""
        return False

    def seconds(self, depth: int, schedule: Schedule) -> float:
        return self.at(depth).seconds(depth, schedule)

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        return self.at(depth).expected_errors(depth)

    def solve(self, depth: int) -> Solution | None:
        return self.at(depth).solve(depth)

    def smallest(self, depth: int) -> list[tuple[Schedule, Methods]]:
        return self.at(depth).smallest(depth)


def adapted(problem: Problem, depth: int) -> Problem:
    """Return the problem with a copy of the model whose last ``depth`` layers the problem's update trains."""
    model = adapt(copy.deepcopy(problem.plain_model), depth, problem.update, train_norm=problem.train_norm)
    model = draw_second_factors(model)
    return replace(problem, model=model, _inputs={})
