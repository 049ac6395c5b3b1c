"""The solver of a plan, by method and update; whether anything may fit at all, and the bytes of the least step."""

from fedact.compression import AUTO, Method
from fedact.planner.adapted_depths import AdaptedDepths
from fedact.planner.allocation import ByteAllocation
from fedact.planner.fixed_method import FixedMethodSearch
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem
from fedact.planner.search import Solver
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import inference_peak_bytes, measure_step


def solver_of(problem: Problem, deepest: int, max_slowdown: float | None) -> Solver:
    """Return what finds the best step at every depth."""
    if not problem.is_adapted:
        return whole_solver(problem, deepest, max_slowdown)
    return AdaptedDepths(problem, lambda adapted_problem, depth: whole_solver(adapted_problem, depth, max_slowdown))


def problem_at(problem: Problem, solver: Solver, depth: int) -> Problem:
    """Return the problem that a solver has at a depth."""
    return solver.problem_at(depth) if isinstance(solver, AdaptedDepths) else problem


def whole_solver(problem: Problem, deepest: int, max_slowdown: float | None) -> Solver:
    """Return what finds the best step where the model is adapted already, or layers are trained whole."""
    method, limit = problem.method, SlowdownLimit(problem, max_slowdown)
    free = method == AUTO or (isinstance(method, Method) and method.has_free_settings and problem.budget is not None)
    return (ByteAllocation if free else FixedMethodSearch)(problem, deepest, limit)


def runs_forward(problem: Problem, solver: Solver) -> bool:
    """Tell whether a peak budget allows the forward pass on whole maps, or may in streams; if not, no search is needed."""
    if not problem.has_head or problem.scope == "saved" or solver.may_stream:
        return True
    if problem.within_budget(inference_peak_bytes(problem)):
        return True
    steps = ((solver.peaks.in_room(schedule.room), methods) for schedule, methods in solver.smallest(0))
    return any(peaks.schedule([methods], 1) is not None for peaks, methods in steps)


def least_bytes(solver: Solver, depth: int) -> int:
    """Return the bytes of the least step at a depth, one example at a time."""
    solver = solver.at(depth) if isinstance(solver, AdaptedDepths) else solver
    problem = solver.peaks.problem

    def measured(peaks: PeakPrediction, methods: Methods) -> int:
        memory = measure_step(peaks.problem, methods, 1, peaks.least_schedule(methods, 1))
        return problem.bytes_in_scope(memory)

    steps = [(solver.peaks.in_room(schedule.room), methods) for schedule, methods in solver.smallest(depth)]
    if problem.scope == "peak":
        steps = [min(steps, key=lambda step: step[0].least_bytes(step[1], 1))]
    return min(measured(*step) for step in steps)
