"""What methods say they store, and the timeline of the step in which they said it."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import Lifetime
from fedact.measure.timeline import Levels, Timeline, Use


class Stored(Protocol):
    """Methods that say what they store: ``fedact.nn.layers.stored_sizes.StoredSizes``, which says what the fields are."""

    observer: Any
    calls: list[Any]
    sizes: list[int]

    def begin_step(self) -> None:
        """Forget the last step's sizes."""

    def end_step(self) -> None:
        """Note the states that the step left."""

    def states(self) -> list[tuple[str, Any, list[Tensor]]]:
        """Return each state, with its layer's name and codec."""


@contextmanager
def observed(stored: Stored, ledger: Ledger) -> Iterator[None]:
    """Let a ledger hear what methods say they store in the one step of the block."""
    stored.begin_step()
    for layer, _, tensors in stored.states():
        ledger.give_slots(layer, tensors, old=True)
    stored.observer = ledger
    try:
        yield
    finally:
        stored.observer = None
        stored.end_step()


def counted(lives: Iterable[Lifetime]) -> list[Lifetime]:
    """Return those that count while they are alive."""
    # While a state is made anew, the old one is there too.
    return [life for life in lives if life.birth or life.entered or life.state_until]


def timeline_of(ledger: Ledger, lives: list[Lifetime], stored: Stored) -> Timeline:
    """Return the timeline of the step in a finished ledger."""
    work = sorted({(begin, stop) for begin, (_, stop) in ledger.work})

    def works(life: Lifetime) -> bool:
        """Tell whether a method makes and releases it while it compresses or decodes."""
        place = bisect_left(work, (life.birth,)) - 1
        return life.slot is None and not life.exempt and place >= 0 and life.death <= work[place][1]

    def uses(lives: Iterable[Lifetime]) -> list[Use]:
        return [Use(life.birth, life.death, life.size, life.slot) for life in lives]

    end, alive = ledger.clock + 1.0, counted(lives)
    held = [Use(*span, life.size, life.slot) for life in lives for span in life.held(ledger.backward_times, end)]
    paper = [Use(start, stop, int(size), life.slot) for (start, stop, size), life in ledger.paper.uses if size]
    levels, first = Levels(uses(life for life in alive if not works(life))), work[0][0] if work else math.inf
    sizes = tuple(stored.sizes)
    _, known = levels.most_until_and_since(first, sizes)
    _, whole = Levels(uses(alive)).most_until_and_since(first, sizes)
    calls = tuple(stored.calls)
    return Timeline(tuple(ledger.slots), sizes, calls, Levels(held), levels, Levels(paper), first, whole - known)
