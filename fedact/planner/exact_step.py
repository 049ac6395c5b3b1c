"""Exact training, with as little made again as the budget allows: where it fits, there is no error to choose by."""

from fedact.compression.exact import Exact
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem
from fedact.planner.schedules import Schedules
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input

READERS = 4
"""So many layers at most read one input, on average, which is kept once."""
LINEARITY = 1.1
"""The bytes of a whole batch are at least those of one example times the batch size, divided by this."""


def exact_batch(problem: Problem, limit: SlowdownLimit, depth: int) -> Solution | None:
    """Return exact training of the whole batch at once, where a budget of saved bytes and slowdown allow it."""
    least, size = problem.least_recomputes[0], problem.batch_size
    methods = _exact(problem, depth, least)
    if problem.budget is not None:
        kept = 0 if least else sum(x.nbytes for x in problem.inputs(problem.trained(depth), 1).values())
        if kept * size > READERS * problem.budget:
            return None
        if measure_step(problem, methods, 1).saved_bytes * size > LINEARITY * problem.budget:
            return None
    memory = measure_step(problem, methods, size)
    solution = Solution(depth, size, methods, memory, dict.fromkeys(methods, 0.0))
    return limit.admit(solution) if problem.fits(memory) else None


def fastest_exact(
    problem: Problem, schedules: Schedules, peaks: PeakPrediction, limit: SlowdownLimit, depth: int
) -> Solution | None:
    """Return exact training by the fastest schedule that a budget of peak bytes and slowdown allow, None where none does."""

    def exact(recompute: int) -> Methods:
        return _exact(problem, depth, recompute)

    for schedule in schedules.that_may_fit(depth, peaks, exact):
        methods, size, found = exact(schedule.recompute), schedule.micro_batch, peaks.in_room(schedule.room)
        prefix = found.schedule([methods], size)
        if prefix is None:
            continue
        memory, errors = measure_step(found.problem, methods, size, prefix), dict.fromkeys(methods, 0.0)
        solution = Solution(depth, size, methods, memory, errors, prefix, room=schedule.room)
        if problem.fits(memory) and (admitted := limit.admit(solution)):
            return admitted
    return None


def _exact(problem: Problem, depth: int, recompute: int) -> Methods:
    return dict.fromkeys(layers_with_input(problem, depth), Exact().recomputing(recompute))
