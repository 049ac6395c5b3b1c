"""Why a plan trains nothing, and the largest images with which a step would fit a budget of peak bytes."""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import torch.nn.functional as F

from fedact.planner.problem import Problem
from fedact.planner.search import Solver
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import inference_peak_bytes

COARSE, FINE = 32, 8
"""Sizes that are tried are multiples of the first number of pixels, of the second where images have fewer than 128."""
TRIES = 4
FEW = 2
"""Images that a step is predicted from."""


def skipped_reason(
    problem: Problem,
    least: int,
    depth: int,
    limit: SlowdownLimit,
    least_bytes: Callable[[Problem], int],
    in_streams_or_tiles: str = "",
) -> str:
    """Return why nothing can be trained, and under a peak also what would fit.

    least: bytes of the least step at this depth; least_bytes: measures them for another problem.
    in_streams_or_tiles: how inference takes the least, in words.
    """
    what = f"{depth} layer{'s'[: depth > 1]}" if depth else "the head alone"
    if problem.within_budget(least) and limit.max_slowdown is None:
        # Then nothing but gradients of more error than signal was left.
        return f"no plan of {what} was found, though {least:,} {problem.scope} bytes are enough for one example at a time"
    if problem.within_budget(least):
        return f"even {what} takes more than {limit.max_slowdown:g} times as long as plain training"
    reason = f"even {what}, one example at a time, needs {least:,} {problem.scope} bytes"
    if problem.scope != "peak":
        return reason
    reason += f"; inference alone peaks at {inference_peak_bytes(problem):,} bytes" + in_streams_or_tiles
    smaller = fitting_images(problem, least, least_bytes)
    return f"{reason}; {smaller}" if smaller else reason


def least_inference(problem: Problem, solver: Solver) -> str:
    """Return how inference takes the least, in words; none of a problem without a head, or where it is run whole."""
    if problem.scope != "peak" or not problem.has_head:
        return ""
    found = [solver.peaks.in_room(schedule.room).least_inference(methods) for schedule, methods in solver.smallest(0)]
    return min(found, default=(0, ""))[1]


def fitting_images(problem: Problem, least: int, least_bytes: Callable[[Problem], int]) -> str | None:
    """Return in words at which resolution the least step would fit the budget, and its bytes; None where none was found.

    least: its bytes now. least_bytes: measures them for another problem. Activations grow with the area of the images: by
    that a size is estimated, and measured, and smaller ones where it does not fit. Networks that take one size have none.
    """
    if problem.budget is None or problem.x.dim() != 4:
        return None
    shorter = min(problem.x.shape[-2:])
    step = COARSE if shorter >= 4 * COARSE else FINE
    estimate = int(shorter * sqrt(problem.budget / least)) // step * step + step
    for side in range(min(estimate, (shorter - 1) // step * step), 0, -step)[:TRIES]:
        smaller = _with_images(problem, side)
        # Any code may run here, and none is bound to take images of another size.
        try:
            needed = least_bytes(smaller)
        except Exception:
            return None
        if problem.within_budget(needed):
            height, width = smaller.x.shape[-2:]
            size = f"{height} px" if height == width else f"{height} x {width} px"
            return f"with images of {size} that would take {needed:,}"
    return None


def _with_images(problem: Problem, side: int) -> Problem:
    """Return the problem with a few images whose shorter side has so many pixels, masks too."""
    x, y = problem.x[:FEW], problem.y[:FEW]
    size = tuple(round(side * pixels / min(x.shape[-2:])) for pixels in x.shape[-2:])
    if y.shape[-2:] == x.shape[-2:]:
        y = F.interpolate(y[:, None].double(), size)[:, 0].to(y.dtype)
    return replace(problem, x=F.interpolate(x, size), y=y)
