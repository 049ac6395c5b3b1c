"""How deep, and then how: what a search for a plan does, whatever there is to choose."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fedact.measure.memory import Memory
from fedact.planner.depth import depth_for, gradient_lengths, grid
from fedact.planner.problem import Methods, Problem

EXAMPLES, ELEMENTS = 32, 64_000_000
"""Gradients' lengths are measured on so many examples, fewer where they have more kept elements in all."""


class Found(NamedTuple):
    """What was found, with its measured step; added: each kept tensor's part of the gradient error, where it is known."""

    depth: int
    micro_batch: int
    methods: Methods
    memory: Memory
    added: Mapping[str, float]
    prefix_chunk: int = 0
    slowdown: float | None = None


class Chooser(Protocol):
    """What may be chosen at a depth: settings, or only the size of the micro-batch."""

    def errors_at(self, depth: int) -> Mapping[str, float] | None:
        """Return about which gradient errors the trained layers would have, None where nothing fits."""

    def at(self, depth: int) -> Found | None:
        """Return the best that keeps to the budget, measured, None where nothing does."""

    def coarsest(self, depth: int) -> list[Methods]:
        """Return the methods among which those with the fewest bytes are."""


@dataclass(frozen=True)
class Depths:
    """The numbers of trained convolutions that may be tried; ``asked`` is the one before anything gives way.

    lengths: of the layers' gradients, where the depth is for the plan to choose.
    """

    asked: int
    possible: tuple[int, ...]
    lengths: Mapping[str, float] = field(default_factory=dict)


def depths_for(problem: Problem, layers: int | str) -> Depths:
    """Return the depth for ``layers``, or with "auto" the one that teaches enough where nothing gives way, and all below."""
    depths = problem.depths(layers)
    if layers != "auto":
        return Depths(depths[0], (depths[0],))
    examples = problem.examples(problem.affordable(problem.trained(depths[-1]), EXAMPLES, ELEMENTS, least=2))
    lengths = gradient_lengths(problem.model, examples, problem.in_order(depths[-1]), problem.loss)
    exact = {depth: dict.fromkeys(problem.in_order(depth), 0.0) for depth in grid(depths)}
    asked = depth_for(exact, lengths)
    assert asked is not None
    return Depths(asked, tuple(depth for depth in exact if depth <= asked), lengths)


def search(problem: Problem, depths: Depths, chooser: Chooser) -> Found | None:
    """Return what was found at the best depth, or the next smaller one, or for the head alone; None where nothing fits."""
    return next((found for depth in _in_turn(problem, depths, chooser) if (found := chooser.at(depth))), None)


def _in_turn(problem: Problem, depths: Depths, chooser: Chooser) -> Iterator[int]:
    if depths.lengths:
        errors = {depth: found for depth in depths.possible if (found := chooser.errors_at(depth)) is not None}
        best = depth_for(errors, depths.lengths, enough=1.0) or 0
        yield from (depth for depth in reversed(depths.possible) if depth <= best)
    else:
        yield depths.asked
    if problem.has_head and depths.asked:
        yield 0
