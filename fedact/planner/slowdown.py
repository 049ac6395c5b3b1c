"""How long a batch takes under a plan, relative to plain training of the same layers at once; and what it computes."""

import time
from dataclasses import dataclass
from math import ceil

import torch

from fedact.compression.exact import Vanilla
from fedact.measure.cost import count_flops
from fedact.nn.surgery import install
from fedact.planner.problem import Methods, Problem
from fedact.planner.search import Found
from fedact.training.local import micro_step

TIMES = 3
"""Steps timed after a first one; the fastest counts, for anything else on the machine only adds to it."""


@dataclass(frozen=True)
class Pace:
    """Times what was found, where a bound on the slowdown was given."""

    problem: Problem
    max_slowdown: float | None

    def kept(self, found: Found) -> Found | None:
        """Return what was found with its slowdown, None where that is over the bound; untimed where there is no bound."""
        if self.max_slowdown is None:
            return found
        slowdown = self.slowdown(found)
        return found._replace(slowdown=slowdown) if slowdown <= self.max_slowdown else None

    def slowdown(self, found: Found) -> float:
        """Return the time of a batch in micro-batches relative to plain training's, all at once."""
        names, size = list(found.methods), self.problem.batch_size
        plain = _seconds(self.problem, dict.fromkeys(names, Vanilla()), size, 0)
        return _seconds(self.problem, found.methods, found.micro_batch, found.prefix_chunk) / plain


def _seconds(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int) -> float:
    """Return the seconds of a batch, by one micro-batch of it."""
    model = install(problem.model, methods, prefix_chunk=prefix_chunk)
    x, y = problem.examples(micro_batch)
    taken = []
    for _ in range(1 + TIMES):
        begin = _now(x)
        micro_step(model, x, y, problem.batch_size, problem.loss)
        taken.append(_now(x) - begin)
        model.zero_grad()
    return min(taken[1:]) * ceil(problem.batch_size / micro_batch)


def batch_flops(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int = 0) -> int:
    """Return the floating-point operations of a batch in micro-batches, from the first trained layer on."""
    model, examples = install(problem.model, methods, prefix_chunk=prefix_chunk), problem.examples(micro_batch)
    if any(method.traits.reads_state for method in methods.values()):
        # What a method finds in a first step only is no part of the others.
        count_flops(model, examples, loss=problem.loss)
    return round(count_flops(model, examples, loss=problem.loss) * problem.batch_size / micro_batch)


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
