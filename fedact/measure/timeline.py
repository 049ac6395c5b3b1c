"""A step's storages over time, to take its bytes again with other sizes of what methods store.

Shapes alone decide when a storage is made and released, and how large it is, but for what a method stores, whose size may
follow the data, and for what it works with meanwhile.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

Sizes = Sequence[int]
"""Bytes by slot."""


class Slot(NamedTuple):
    """One tensor of those whose sizes are given anew.

    layer: the module that stores it, by name. tensor: its place among what one compression returns, tensors before state;
    of a state that was there before the step, its place among the layer's. old: whether it is such a state.
    """

    layer: str
    tensor: int
    old: bool = False


class Use(NamedTuple):
    """From when to when (in operations, both inclusive) so many bytes are used; slot: where their number is given anew."""

    start: float
    stop: float
    size: int
    slot: int | None = None


class Levels:
    """The total of some uses at each moment when one begins or ends.

    >>> levels = Levels([Use(1, 4, 100), Use(3, 9, 50, slot=0), Use(6, 9, 80)])
    >>> levels.most([50]), levels.most([60]), levels.most([10])
    (150, 160, 110)
    """

    def __init__(self, uses: Sequence[Use]) -> None:
        uses = [use for use in uses if use.stop >= use.start]
        # What begins at a moment begins before anything ends then.
        edges = sorted(edge for n, use in enumerate(uses) for edge in ((use.start, 0, n), (use.stop, 1, n)))
        self.times = np.array([time for time, _, _ in edges], float)
        self._uses = np.array([number for _, _, number in edges], int)
        self._signs = np.array([1 - 2 * ends for _, ends, _ in edges], np.int64)
        self._sizes = np.array([use.size for use in uses], np.int64)
        given = [(number, use.slot) for number, use in enumerate(uses) if use.slot is not None]
        self._given = np.array([number for number, _ in given], int)
        self._slots = np.array([slot for _, slot in given], int)

    def grown(self, other: "Levels", times: int) -> "Levels | None":
        """Return the other's levels with each use so many times further from its size here than the other's is.

        None where they do not have the same uses. Of steps on one and two examples, this is one on ``times + 1``.
        """
        if len(self._sizes) != len(other._sizes) or not np.array_equal(self._slots, other._slots):
            return None
        result = copy(other)
        result._sizes = self._sizes + times * (other._sizes - self._sizes)
        return result

    def during(self, totals: Int64[np.ndarray, " moments"]) -> dict[int, int]:
        """Return the largest of the totals while each slot is in use, by slot; totals: of ``at``."""
        edges = np.argsort(self._uses, kind="stable").reshape(-1, 2)[self._given]
        spans = zip(self._slots.tolist(), edges.tolist(), strict=True)
        return {slot: int(totals[start:stop].max()) for slot, (start, stop) in spans}

    def at(self, sizes: Sizes) -> Int64[np.ndarray, " moments"]:
        """Return the total after each of ``times``."""
        filled = self._sizes
        if len(self._given):
            filled = filled.copy()
            filled[self._given] = np.asarray(sizes, np.int64)[self._slots]
        return np.cumsum(filled[self._uses] * self._signs)

    def most(self, sizes: Sizes = ()) -> int:
        """Return the largest total, 0 without uses."""
        return int(self.at(sizes).max(initial=0))

    def most_until_and_since(self, moment: float, sizes: Sizes = ()) -> tuple[int, int]:
        """Return the largest totals up to a moment, and from it on."""
        levels, begin = self.at(sizes), int(np.searchsorted(self.times, moment, side="right"))
        return int(levels[:begin].max(initial=0)), int(levels[max(0, begin - 1) :].max(initial=0))


@dataclass(frozen=True, eq=False)
class Timeline:
    """One measured step, from which the bytes of every step of the same shapes follow.

    slots: whose sizes are given anew, in the order in which a step has them; sizes: those of the measured step. calls: how
    many tensors each compression returned, for which shape. held, alive: uses as in ``measure.memory``; paper: 4 bytes x
    stored elements of the trained layers' inputs. first_call: when the first compression began, infinity without any.

    What methods work with while they compress or decode may follow the data, and is in no level: ``working_bytes`` is how
    far it raised the peak. A plan remembers that of the server's examples, so that a step's bytes do not depend on which
    step was measured.
    """

    slots: tuple[Slot, ...]
    sizes: Sizes
    calls: tuple[Any, ...]
    held: Levels
    alive: Levels
    paper: Levels
    first_call: float
    working_bytes: int = 0

    def saved_bytes(self, sizes: Sizes) -> int:
        """Return the most bytes that are saved at any moment, without states, for these sizes by slot."""
        return self.held.most(sizes)

    def paper_bytes(self, paper_sizes: Sizes) -> int:
        """Return the papers' figure; paper_sizes: 4 bytes x stored elements by slot."""
        return self.paper.most(paper_sizes)

    def peak_bytes(self, sizes: Sizes, working_bytes: int) -> int:
        """Return the most bytes alive at any moment, for these sizes by slot.

        working_bytes: what methods work with adds so much from the first compression on.
        """
        before, since = self.alive.most_until_and_since(self.first_call, sizes)
        return max(before, since + working_bytes if self.first_call < np.inf else since)
