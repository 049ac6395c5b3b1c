"""Multiple-choice knapsack: one option for each saved input, the least sum of errors within a number of bytes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

MAX_STATES = 4_000
"""Most partial allocations told apart in a stage; where there are more, the result is no longer proven to be optimal."""


class Option(NamedTuple):
    """One way to save an input: its size in bytes and the error it adds."""

    size: int
    error: float


class _Stage(NamedTuple):
    """The Pareto-optimal allocations for the groups so far, by rising bytes and falling error.

    previous: each one's place in the stage before; option: its place in the last group.
    """

    sizes: Int64[np.ndarray, " states"]
    errors: Float64[np.ndarray, " states"]
    previous: Int64[np.ndarray, " states"]
    option: Int64[np.ndarray, " states"]


def allocate(groups: Sequence[Sequence[Option]], capacity: int, max_states: int = MAX_STATES) -> list[int] | None:
    """Return each group's option, by its place in the group; None where even the smallest options exceed the capacity.

    groups: the options for every saved input. capacity: bytes. A dynamic programme over Pareto-optimal allocations: the
    result never exceeds the capacity, and has the least sum of errors as long as no stage has more than ``max_states``.

    >>> allocate([[Option(8, 0.0), Option(2, 0.5)], [Option(4, 0.0), Option(1, 0.1)]], capacity=9)
    [0, 1]
    """
    least = [min(option.size for option in group) for group in groups]
    places = [_pareto(group) for group in groups]
    if sum(least) > capacity:
        return None
    stages = [_Stage(*(np.zeros(1, kind) for kind in (np.int64, np.float64, np.int64, np.int64)))]
    for place, group in enumerate(groups):
        few = [group[each] for each in places[place]]
        stages.append(_next_stage(stages[-1], few, capacity - sum(least[place + 1 :]), max_states))
    state, chosen = len(stages[-1].sizes) - 1, []
    for stage, kept in zip(reversed(stages[1:]), reversed(places), strict=True):
        chosen.append(kept[int(stage.option[state])])
        state = int(stage.previous[state])
    return chosen[::-1]


def _pareto(group: Sequence[Option]) -> list[int]:
    """Return the places of a group's options that no other is as small as, with as little error."""
    found: list[int] = []
    for place in sorted(range(len(group)), key=lambda each: group[each]):
        if not found or group[place].error < group[found[-1]].error:
            found.append(place)
    return found


def _next_stage(last: _Stage, group: Sequence[Option], capacity: int, max_states: int) -> _Stage:
    """Return the Pareto-optimal allocations with one more group; beyond ``max_states``, one for each step of bytes."""
    sizes = np.array([option.size for option in group], np.int64)[:, None] + last.sizes
    errors = np.array([option.error for option in group], np.float64)[:, None] + last.errors
    option, previous = np.nonzero(sizes <= capacity)
    sizes, errors = sizes[option, previous], errors[option, previous]
    # Each option's states are sorted already: a stable sort merges them.
    order = np.argsort(sizes, kind="stable")
    best = np.minimum.accumulate(errors[order])
    order = order[np.diff(best, prepend=np.inf) < 0]
    stage = _Stage(sizes[order], errors[order], previous[order], option[order])
    if len(stage.sizes) <= max_states:
        return stage
    # Of each step's states the one with the least error; and the smallest of all.
    step = max(1, int(np.ptp(stage.sizes)) // max_states + 1)
    bucket = (stage.sizes - stage.sizes[0]) // step
    last_of_step = np.flatnonzero(np.diff(bucket, append=bucket[-1] + 1))
    return _select(stage, np.unique(np.concatenate([[0], last_of_step])))


def _select(stage: _Stage, places: Int64[np.ndarray, " some"]) -> _Stage:
    return _Stage(*(column[places] for column in stage))
