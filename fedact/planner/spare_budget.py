"""The bytes that a chosen step leaves of a peak budget, given to the room of its blocks in streams."""

from dataclasses import replace

from fedact.planner.problem import Problem, Schedule
from fedact.planner.search import Solution, Solver
from fedact.planner.step_memory import measure_within_budget

TRIES = 3
"""So many larger rooms are measured at most."""


def with_spare_budget(problem: Problem, solution: Solution, solver: Solver) -> Solution:
    """Return the same step with as much more room as the budget leaves, where its blocks then run in fewer groups.

    A step takes no more bytes than it has more room, but for rounding to whole channels: the result is measured.
    """
    if solution.room is None or problem.budget is None:
        return solution
    found, room, most = solution, solution.room, problem.budget
    for _ in range(TRIES):
        larger = room + most - problem.bytes_in_scope(found.memory)
        more = found._replace(room=larger, step_error=None)
        if _seconds(more, solver) >= _seconds(found, solver):
            break
        memory = measure_within_budget(replace(problem, room=larger), found.methods, found.micro_batch, found.prefix)
        if problem.fits(memory):
            found, room = more._replace(memory=memory), larger
        else:
            # Rounding takes about as much in a little less.
            most -= problem.bytes_in_scope(memory) - problem.budget
    return found


def _seconds(solution: Solution, solver: Solver) -> float:
    recompute = max((method.recompute for method in solution.methods.values()), default=0)
    return solver.seconds(solution.depth, Schedule(solution.micro_batch, recompute, solution.room))
