"""Ways to share a budget out over the kept tensors, from what was measured about each of them; nothing here runs a model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from fedact.compression import Method
from fedact.planner.kept_tensors import Group
from fedact.planner.knapsack import MOST_WAYS, Option, allocate
from fedact.planner.sensitivity import Errors

STEPS_BETWEEN = 4
"""Bits between two measured levels are filled in with so many steps less one."""


class Way(NamedTuple):
    """One way to keep a group's tensor, and its errors: of its layers' weight gradients, and of what passes its slopes."""

    method: Method
    own: dict[str, float]
    passed: dict[str, float]


@dataclass(frozen=True)
class Draft:
    """A shared-out budget that is yet to be measured. errors: by trained layer; added: by kept tensor, their sum's parts."""

    depth: int
    micro_batch: int
    ways: dict[str, Way]
    groups: tuple[Group, ...]
    errors: dict[str, float]
    added: dict[str, float]
    predicted_bytes: int

    @property
    def error(self) -> float:
        """The sum over the trained layers of ||g' - g||^2 / ||g||^2."""
        return sum(self.added.values())

    @property
    def methods(self) -> dict[str, Method]:
        """The method of every layer: that of the tensor which its input is, or is made again from."""
        keys = {name: group.key for group in self.groups for name in group.layers}
        return {name: self.ways[key].method for name, key in keys.items()}


def ways_of(ladder: Sequence[Method], levels: Sequence[Errors]) -> list[Way]:
    """Return the measured ways to keep a tensor, and those between them."""
    measured = [Way(method, errors.own, errors.passed) for method, errors in zip(ladder, levels, strict=True)]
    return measured + [way for one, other in pairwise(measured) for way in _between(one, other)]


def of_group(way: Way, group: Group) -> Way:
    """Return a way with the errors of one group's layers alone."""
    own = {name: way.own[name] for name in group.layers if name in way.own}
    return Way(way.method, own, {name: way.passed[name] for name in group.before if name in way.passed})


def _between(one: Way, other: Way) -> Iterator[Way]:
    """Yield ways between two levels: errors fall with the bits by a power law from one to the other."""
    for place in range(1, STEPS_BETWEEN):
        share = place / STEPS_BETWEEN
        method = one.method.between(other.method, share)
        if method is not None:
            yield Way(method, _mixed(one.own, other.own, share), _mixed(one.passed, other.passed, share))


def _mixed(one: Mapping[str, float], other: Mapping[str, float], share: float) -> dict[str, float]:
    return {name: error ** (1 - share) * other[name] ** share for name, error in one.items()}


def draft(
    depth: int,
    micro_batch: int,
    groups: Sequence[Group],
    ways: Mapping[str, Sequence[Way]],
    sizes: Mapping[str, Sequence[int]],
    trained: Sequence[str],
    damping: float,
    capacity: int,
    most_ways: int = MOST_WAYS,
) -> Draft | None:
    """Return the way of each group with the least sum of errors within the capacity, None where none fits.

    sizes: the bytes of each way for this micro-batch. trained: the layers in their order; an error in the gradient of one's
    output reaches, damped, its own weight and those of all before it.
    """
    reach = {name: damping * (place + 1) for place, name in enumerate(trained)}
    options = [
        [Option(size, _added(way, reach)) for size, way in zip(sizes[group.key], ways[group.key], strict=True)]
        for group in groups
    ]
    chosen = allocate(options, capacity, most_ways)
    if chosen is None:
        return None
    picked = {group.key: ways[group.key][place] for group, place in zip(groups, chosen, strict=True)}
    taken = [each[place] for each, place in zip(options, chosen, strict=True)]
    added = {group.key: option.error for group, option in zip(groups, taken, strict=True)}
    errors = _by_layer(picked.values(), trained, damping)
    return Draft(depth, micro_batch, picked, tuple(groups), errors, added, sum(option.size for option in taken))


def _added(way: Way, reach: Mapping[str, float]) -> float:
    """Return what a way adds to the sum of all trained layers' errors."""
    own = sum(error for name, error in way.own.items() if name in reach)
    return own + sum(error * reach[name] for name, error in way.passed.items() if name in reach)


def _by_layer(ways: Iterable[Way], trained: Sequence[str], damping: float) -> dict[str, float]:
    """Return every trained layer's error: its own, and what reaches it from after it."""
    own: dict[str, float] = {}
    passed: dict[str, float] = {}
    for way in ways:
        own.update(way.own)
        passed.update(way.passed)
    errors, reaching = {}, 0.0
    for name in reversed(trained):
        reaching += damping * passed.get(name, 0.0)
        errors[name] = own.get(name, 0.0) + reaching
    return errors
