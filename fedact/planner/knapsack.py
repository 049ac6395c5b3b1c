"""One option for each kept tensor, so that the errors add up to the least within a number of bytes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

MOST_WAYS = 4_000
"""Up to so many ways to share out the bytes are told apart; beyond it the allocation is no longer proven to be the best."""


class Option(NamedTuple):
    """One way to keep a tensor: the bytes it takes and the error it adds."""

    size: int
    error: float


class _Stage(NamedTuple):
    """The best ways to keep the tensors so far: more bytes, less error. Each is a way before and an option of the last."""

    sizes: Int64[np.ndarray, " ways"]
    errors: Float64[np.ndarray, " ways"]
    before: Int64[np.ndarray, " ways"]
    option: Int64[np.ndarray, " ways"]


def allocate(groups: Sequence[Sequence[Option]], capacity: int, most_ways: int = MOST_WAYS) -> list[int] | None:
    """Return the place of the option for each group; None where even the smallest ones do not fit.

    A dynamic programme over the ways that no other way beats in both bytes and error: what it returns never takes more
    than the capacity, and has the least sum of errors while there are at most ``most_ways`` such ways.
    """
    least = [min(option.size for option in group) for group in groups]
    if sum(least) > capacity:
        return None
    stages = [_Stage(*(np.zeros(1, kind) for kind in (np.int64, np.float64, np.int64, np.int64)))]
    for place, group in enumerate(groups):
        stages.append(_following(stages[-1], group, capacity - sum(least[place + 1 :]), most_ways))
    way, chosen = len(stages[-1].sizes) - 1, []
    for stage in reversed(stages[1:]):
        chosen.append(int(stage.option[way]))
        way = int(stage.before[way])
    return chosen[::-1]


def _following(last: _Stage, group: Sequence[Option], capacity: int, most_ways: int) -> _Stage:
    """Return the undominated ways to keep one more tensor within the capacity."""
    sizes = last.sizes[:, None] + np.array([option.size for option in group], np.int64)
    errors = last.errors[:, None] + np.array([option.error for option in group], np.float64)
    before, option = np.nonzero(sizes <= capacity)
    stage = _Stage(sizes[before, option], errors[before, option], before, option)
    stage = _taken(stage, np.lexsort((stage.errors, stage.sizes)))
    best = np.minimum.accumulate(stage.errors)
    stage = _taken(stage, np.flatnonzero(stage.errors < np.concatenate([[np.inf], best[:-1]])))
    return stage if len(stage.sizes) <= most_ways else _thinned(stage, most_ways)


def _thinned(stage: _Stage, most_ways: int) -> _Stage:
    """Return one way for each of so many equal steps of bytes: the one with the least error; and the smallest of all."""
    step = max(1, int(np.ptp(stage.sizes)) // most_ways + 1)
    bucket = (stage.sizes - stage.sizes[0]) // step
    last = np.flatnonzero(np.diff(bucket, append=bucket[-1] + 1))
    return _taken(stage, np.unique(np.concatenate([[0], last])))


def _taken(stage: _Stage, places: Int64[np.ndarray, " some"]) -> _Stage:
    return _Stage(*(each[places] for each in stage))
