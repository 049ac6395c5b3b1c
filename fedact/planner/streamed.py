"""Training below the fast engine's floor: exact, with inverted residuals in streams, in as much room as a peak leaves."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedact.compression.exact import Exact
from fedact.nn.streams.find import find
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem
from fedact.planner.search import Depths, Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import floor_bytes, measure_step
from fedact.planner.step_structure import layers_with_input

SHARES = (2, 4, 8, 16, 32)
"""Rooms are the floor divided by these, the largest first: the more room, the fewer groups of channels and the faster."""


def streamed(problem: Problem, depths: Depths, limit: SlowdownLimit) -> Solution | None:
    """Return exact training in streams at the first depth that a peak budget allows, None where it allows none.

    With as much room as fits one example, and then as many examples.
    """
    if problem.scope != "peak" or problem.budget is None or not find(problem.plain_model):
        return None
    rooms = rooms_for(problem)
    for depth in depths.candidates:
        if _may_fit(replace(problem, room=rooms[-1]), depth):
            for room in rooms:
                if found := next(_solutions(replace(problem, room=room), depth, limit), None):
                    return found
    return None


def rooms_for(problem: Problem) -> Sequence[int]:
    """Return the rooms that are tried, in bytes, the largest first."""
    floor = floor_bytes(problem)
    return [max(1, floor // share) for share in SHARES]


def _may_fit(problem: Problem, depth: int) -> bool:
    return PeakPrediction(problem).schedule([_exact(problem, depth)], 1) is not None


def _solutions(problem: Problem, depth: int, limit: SlowdownLimit) -> Iterator[Solution]:
    """Yield the steps at a depth in one room that are within the budget, the largest micro-batch first."""
    peaks, methods = PeakPrediction(problem), _exact(problem, depth)
    if peaks.schedule([methods], 1) is None:
        return
    for size in problem.micro_batches():
        prefix = peaks.schedule([methods], size)
        if prefix is None:
            continue
        memory, errors = measure_step(problem, methods, size, prefix), dict.fromkeys(methods, 0.0)
        solution = Solution(depth, size, methods, memory, errors, prefix, room=problem.room)
        if problem.fits(memory) and (admitted := limit.admit(solution)):
            yield admitted


def _exact(problem: Problem, depth: int) -> Methods:
    return dict.fromkeys(layers_with_input(problem, depth), Exact())
