"""Multiple-choice knapsack: one option for each saved input, the least sum of errors within a number of bytes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

MAX_STATES = 4_000
"""Most partial allocations told apart in a stage; where there are more, the result is no longer proven to be optimal."""


ROUNDING = 1e-9
"""Of sums of errors in another order, relative to the largest."""


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
    places = [_pareto(group) for group in groups]
    few = [[group[place] for place in kept] for group, kept in zip(groups, places, strict=True)]
    if sum(group[0].size for group in few) > capacity:
        return None
    steps = _efficient_steps(few)
    enough = _error_within(few, steps, capacity) + ROUNDING * sum(group[0].error for group in few)
    stages = [_Stage(*(np.zeros(1, kind) for kind in (np.int64, np.float64, np.int64, np.int64)))]
    for done, group in enumerate(few, 1):
        rest = _Rest.of(few, steps, done)
        stages.append(_next_stage(stages[-1], group, capacity, rest, enough, max_states))
    state, chosen = len(stages[-1].sizes) - 1, []
    for stage, kept in zip(reversed(stages[1:]), reversed(places), strict=True):
        chosen.append(kept[int(stage.option[state])])
        state = int(stage.previous[state])
    return chosen[::-1]


class _Step(NamedTuple):
    """From one option of a group to a larger one on the lower hull: bytes more and error less; group: its place."""

    group: int
    size: int
    gain: float


def _efficient_steps(groups: Sequence[Sequence[Option]]) -> list[_Step]:
    """Return the steps along each group's hull, from its smallest option on, those that gain the most a byte first."""
    steps = []
    for place, group in enumerate(groups):
        hull: list[Option] = []
        for option in group:
            while len(hull) > 1 and _slope(hull[-2], option) >= _slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append(option)
        steps += [_Step(place, two.size - one.size, one.error - two.error) for one, two in pairwise(hull)]
    return sorted(steps, key=lambda step: step.gain / step.size, reverse=True)


def _slope(one: Option, two: Option) -> float:
    """Return the error that each byte more spares."""
    return (one.error - two.error) / (two.size - one.size)


def _error_within(groups: Sequence[Sequence[Option]], steps: Sequence[_Step], capacity: int) -> float:
    """Return the error of an allocation that takes every step that fits; the optimum has no more."""
    unused, error = capacity - sum(group[0].size for group in groups), sum(group[0].error for group in groups)
    stopped: set[int] = set()
    for step in steps:
        if step.size > unused:
            stopped.add(step.group)
        elif step.group not in stopped:
            unused, error = unused - step.size, error - step.gain
    return error


class _Rest(NamedTuple):
    """The groups still to come: their least bytes and the error then, and what more bytes gain at most, in all."""

    least: int
    error: float
    sizes: Int64[np.ndarray, " steps"]
    gains: Float64[np.ndarray, " steps"]

    @classmethod
    def of(cls, groups: Sequence[Sequence[Option]], steps: Sequence[_Step], done: int) -> "_Rest":
        rest, ahead = groups[done:], [step for step in steps if step.group >= done]
        sizes, gains = ([0, *(step[column] for step in ahead)] for column in (1, 2))
        least, error = (sum(group[0][column] for group in rest) for column in (0, 1))
        return cls(int(least), error, np.cumsum(np.array(sizes, np.int64)), np.cumsum(np.array(gains, np.float64)))

    def least_error(self, unused: Int64[np.ndarray, " states"]) -> Float64[np.ndarray, " states"]:
        """Return a bound on their error for numbers of bytes: as if options could be taken in part."""
        gains: Float64[np.ndarray, " states"] = np.interp(unused - self.least, self.sizes, self.gains)
        return self.error - gains


def _pareto(group: Sequence[Option]) -> list[int]:
    """Return the places of a group's options that no other is as small as, with as little error."""
    found: list[int] = []
    for place in sorted(range(len(group)), key=lambda each: group[each]):
        if not found or group[place].error < group[found[-1]].error:
            found.append(place)
    return found


def _next_stage(last: _Stage, group: Sequence[Option], capacity: int, rest: _Rest, enough: float, max_states: int) -> _Stage:
    """Return the Pareto-optimal allocations with one more group; beyond ``max_states``, one for each step of bytes.

    Without those that the rest cannot bring below ``enough``, an error that is known to be within reach.
    """
    sizes = np.array([option.size for option in group], np.int64)[:, None] + last.sizes
    errors = np.array([option.error for option in group], np.float64)[:, None] + last.errors
    within_reach = errors + rest.least_error(capacity - sizes) <= enough
    option, previous = np.nonzero(within_reach & (sizes <= capacity - rest.least))
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
