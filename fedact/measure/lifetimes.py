"""The lifetime of one storage in a step, and the largest sum of sizes over time."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

Span = tuple[float, float, int]
"""From when to when, both inclusive, and how many bytes."""


@dataclass(eq=False)
class Lifetime:
    """One storage: from when to when it is alive (in operations), who uses it, and when autograd has it packed.

    birth: 0 for what was there before the step. owner: the module that made it, or that saves it. before_backward: born in a
    forward pass or a recomputation. inside: born in a module that did not return it. root: the gradient that ``backward()``
    starts from, made by itself. entered: read by a module's forward pass; read: by any forward pass. last_use: the last time
    that a backward pass read it. packed: [start, end] of each time that autograd saved it. state_until: when it stopped
    being a module's declared state, which is counted apart; infinity for what still is, 0 for what never was. exempt: it is
    a weight, a buffer or a gradient, or was given, and does not count any more: it "died" when it became that. slot: its
    place among the tensors that methods said they store.
    """

    size: int
    birth: float
    owner: str
    before_backward: bool
    inside: bool
    root: bool
    death: float = math.inf
    entered: bool = False
    read: bool = False
    last_use: float = -math.inf
    packed: list[list[float]] = field(default_factory=list)
    state_until: float = 0
    exempt: bool = False
    slot: int | None = None

    def exempt_from(self, clock: float) -> None:
        """Note that from this time on it belongs to what is not counted; what was there before the step never counts."""
        self.exempt = True
        self.death = min(self.death, clock if self.birth else -1)

    def held(self, backward_times: list[float], end: float) -> list[tuple[float, float]]:
        """Return when it is saved: while packed; where hooks did not see it, from the next backward operation on."""
        if self.packed:
            spans = [(max(start, self.state_until), min(stop, self.death)) for start, stop in union(self.packed)]
            return [(start, stop) for start, stop in spans if stop >= start]
        if self.state_until:
            return []
        if not self.before_backward or self.root:
            return []
        known = self.birth > 0 or self.read
        last = self.death if self.inside else self.last_use if known else -math.inf
        later = bisect_left(backward_times, self.birth)
        start = backward_times[later] if later < len(backward_times) else end
        return [(start, min(self.death, last))] if last >= start else []


def peak(spans: Iterable[Span]) -> tuple[int, float]:
    """Return the largest total size of spans at any time, and the first such time; 0 and -1 without spans.

    >>> peak([(1, 4, 100), (3, 9, 50), (6, 9, 80)])
    (150, 3)
    """
    edges = sorted(edge for start, end, size in spans if end >= start for edge in ((start, 0, size), (end, 1, -size)))
    total, best, moment = 0, 0, -1.0
    for time, _, size in edges:
        total += size
        if total > best:
            best, moment = total, time
    return best, moment


def union(spans: list[list[float]]) -> list[tuple[float, float]]:
    """Return the union of the spans, in order: overlapping ones are one."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result
