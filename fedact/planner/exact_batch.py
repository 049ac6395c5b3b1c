"""Exact training of the whole batch at once: where it fits, there is nothing to choose."""

from fedact.compression.exact import Exact
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Problem
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input

READERS = 4
"""So many layers at most read one input, on average, which is kept once."""
LINEARITY = 1.1
"""The bytes of a whole batch are at least those of one example times the batch size, divided by this."""


def exact_batch(problem: Problem, peaks: PeakPrediction, limit: SlowdownLimit, depth: int) -> Solution | None:
    """Return exact training of the whole batch at once, where budget and slowdown allow it."""
    if problem.scope == "peak":
        return _in_chunks(problem, peaks, limit, depth)
    least, size = problem.least_recomputes[0], problem.batch_size
    methods = dict.fromkeys(layers_with_input(problem, depth), Exact().recomputing(least))
    if problem.budget is not None:
        kept = 0 if least else sum(x.nbytes for x in problem.inputs(problem.trained(depth), 1).values())
        if kept * size > READERS * problem.budget:
            return None
        if measure_step(problem, methods, 1).saved_bytes * size > LINEARITY * problem.budget:
            return None
    memory = measure_step(problem, methods, size)
    solution = Solution(depth, size, methods, memory, dict.fromkeys(methods, 0.0))
    return limit.admit(solution) if problem.fits(memory) else None


def _in_chunks(problem: Problem, peaks: PeakPrediction, limit: SlowdownLimit, depth: int) -> Solution | None:
    """Return the same within a peak, the prefix in chunks, with as little made again as the budget allows."""
    layers, size, recomputes = layers_with_input(problem, depth), problem.batch_size, problem.least_recomputes
    if peaks.rules_out(dict.fromkeys(layers, Exact().recomputing(max(recomputes))), size):
        return None
    for recompute in recomputes:
        methods = dict.fromkeys(layers, Exact().recomputing(recompute))
        # In chunks, nothing made again is no candidate.
        prefix = peaks.schedule([methods], size)
        if prefix is None:
            continue
        memory = measure_step(problem, methods, size, prefix)
        solution = Solution(depth, size, methods, memory, dict.fromkeys(methods, 0.0), prefix)
        if problem.fits(memory) and (admitted := limit.admit(solution)):
            return admitted
    return None
