"""The time of a batch under a plan, relative to plain training of the same layers at once; and its operations."""

import time
from dataclasses import dataclass, replace
from math import ceil

import torch

from fedact.compression.exact import Vanilla
from fedact.measure.cost import count_flops
from fedact.nn.surgery import install
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem
from fedact.planner.search import Solution
from fedact.training.local import micro_step

REPETITIONS = 3
"""Steps timed after a first one; the fastest counts, for anything else on the machine only adds to it."""


@dataclass(frozen=True)
class SlowdownLimit:
    """The most time that a batch may take relative to plain training's; None for no limit, and nothing is timed."""

    problem: Problem
    max_slowdown: float | None

    def admit(self, solution: Solution) -> Solution | None:
        """Return the solution with its slowdown, None where that is over the limit; as it is where there is none."""
        if self.max_slowdown is None:
            return solution
        slowdown = self.slowdown(solution)
        return solution._replace(slowdown=slowdown) if slowdown <= self.max_slowdown else None

    def slowdown(self, solution: Solution) -> float:
        """Return the seconds of a batch in micro-batches, divided by plain training's, all at once."""
        names, size = list(solution.methods), self.problem.batch_size
        plain = _batch_seconds(self.problem, dict.fromkeys(names, Vanilla()), size, WHOLE)
        problem = replace(self.problem, room=solution.room)
        return _batch_seconds(problem, solution.methods, solution.micro_batch, solution.prefix) / plain


def _batch_seconds(problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule) -> float:
    """Return the seconds of a batch, from the fastest of a few steps on one micro-batch."""
    model = install(problem.model, methods, prefix_chunk=prefix.chunk, room=problem.room, tiles=prefix.tiles)
    x, y = problem.examples(micro_batch)
    seconds = []
    for _ in range(1 + REPETITIONS):
        begin = _now(x)
        micro_step(model, x, y, problem.batch_size, problem.loss)
        seconds.append(_now(x) - begin)
        model.zero_grad()
    return min(seconds[1:]) * ceil(problem.batch_size / micro_batch)


def batch_flops(problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule = WHOLE) -> int:
    """Return the floating-point operations of a batch in micro-batches, from the first trained layer on."""
    model = install(problem.model, methods, prefix_chunk=prefix.chunk, room=problem.room, tiles=prefix.tiles)
    examples = problem.examples(micro_batch)
    if any(method.traits.reads_state for method in methods.values()):
        # The first step alone has the operations that start a method's state.
        count_flops(model, examples, loss=problem.loss)
    return round(count_flops(model, examples, loss=problem.loss) * problem.batch_size / micro_batch)


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
