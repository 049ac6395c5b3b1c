"""Partitions in which clients hold different classes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.partition.base import Partition, Parts, check_alpha, even_sizes


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each class is shared out in proportions drawn from a symmetric Dirichlet distribution; small alpha, skewed clients.

    self_balancing: who holds more than an even share of all examples gets none of the classes still to be shared out.
    """

    alpha: float = 0.3
    self_balancing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha("dirichlet", self.alpha)

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        dealt, owners = [], []
        held = np.zeros(clients, dtype=np.int64)
        for label in np.unique(labels):
            positions = generator.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(generator.dirichlet(np.full(clients, self.alpha)))
            if self.self_balancing:
                ends = _ends_with_room(np.diff(ends, prepend=0), held <= len(labels) / clients)
            cuts = (ends[:-1] * len(positions)).astype(int)
            sizes = np.diff(cuts, prepend=0, append=len(positions))
            dealt.append(positions)
            owners.append(np.repeat(np.arange(clients), sizes))
            held += sizes
        return Parts.by_owner(np.concatenate(dealt), np.concatenate(owners), clients)


def _ends_with_room(shares: np.ndarray, has_room: np.ndarray) -> np.ndarray:
    """Return where each client's share of a class ends, with those left out that have no room."""
    kept = shares * has_room
    ends = np.cumsum(kept if kept.any() else has_room)
    # The last is 1 exactly, and so is every end before it that has no share behind it.
    relative: np.ndarray = ends / ends[-1]
    return relative


@dataclass(frozen=True)
class Shards(Partition):
    """The examples sorted by label are cut into equal shards, of which each client is dealt a few."""

    per_client: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_client < 1:
            raise ConfigError(f"shards: per_client is at least 1, not {self.per_client}")

    def examples_needed(self, clients: int) -> int:
        return clients * max(self.per_client, self.min_partition_size)

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        if clients * self.per_client > len(labels):
            raise ConfigError(
                f"shards: {clients} clients with per_client={self.per_client} need {clients * self.per_client} shards, "
                f"but there are {len(labels)} examples"
            )
        sizes = even_sizes(len(labels), clients * self.per_client)
        turns = np.argsort(generator.permutation(len(sizes)))
        in_turn = Parts.by_owner(np.argsort(labels, kind="stable"), np.repeat(turns, sizes), len(sizes))
        return Parts(in_turn.order, in_turn.bounds[:: self.per_client])


@dataclass(frozen=True)
class Pathological(Partition):
    """Each client holds so many classes; each class is shared out evenly among those that hold it, and none is left out.

    class_assignment_mode: random draws each client's classes; deterministic gives client i the classes i, i + 1, ...; and
    first-deterministic gives it class i and draws the others. Numbers start again at 0 where there are no more classes.
    """

    num_classes_per_partition: int = 2
    class_assignment_mode: Literal["random", "deterministic", "first-deterministic"] = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes_per_partition < 1:
            raise ConfigError(f"pathological: num_classes_per_partition is at least 1, not {self.num_classes_per_partition}")

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        classes, numbers = np.unique(labels, return_inverse=True)
        self._check(clients, len(classes))
        chosen = self.classes_of(clients, len(classes), generator)
        holders = Parts.by_owner(np.repeat(np.arange(clients), chosen.shape[1]), chosen.ravel(), len(classes))
        dealt = [generator.permutation(np.flatnonzero(numbers == number)) for number in range(len(classes))]
        owners = [
            np.repeat(own, even_sizes(len(positions), len(own))) for own, positions in zip(holders, dealt, strict=True)
        ]
        return Parts.by_owner(np.concatenate(dealt), np.concatenate(owners), clients)

    def _check(self, clients: int, classes: int) -> None:
        """Raise ConfigError where clients cannot hold so many classes each, or not all classes together."""
        each, mode = self.num_classes_per_partition, self.class_assignment_mode
        what = f"pathological: {clients} clients with num_classes_per_partition={each}"
        if each > classes:
            raise ConfigError(
                f"pathological: num_classes_per_partition={each}, but the clients' examples have {classes} classes"
            )
        if clients * each < classes:
            raise ConfigError(
                f"{what} hold at most {clients * each} of {classes} classes: more clients, or more classes each"
            )
        if mode == "deterministic" and (held := clients + each - 1) < classes:
            raise ConfigError(
                f"{what} and class_assignment_mode=deterministic hold the first {held} of {classes} classes: "
                "more clients, or more classes each, or class_assignment_mode=random"
            )

    def classes_of(self, clients: int, classes: int, generator: np.random.Generator) -> np.ndarray:
        """Return which classes each client holds, int64 (clients, classes each): every class is in it."""
        each, first = self.num_classes_per_partition, np.arange(clients)[:, None] % classes
        if self.class_assignment_mode == "deterministic":
            return (first + np.arange(each)) % classes
        if self.class_assignment_mode == "random":
            return _with_every_class(_subsets(clients, classes, each, generator), classes, 0, generator)
        others = (first + 1 + _subsets(clients, classes - 1, each - 1, generator)) % classes
        return _with_every_class(np.concatenate([first, others], axis=1), classes, 1, generator)


def _subsets(rows: int, pool: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``size`` different numbers below ``pool`` in each row.

    Source: Bentley and Floyd, A sample of brilliance, Communications of the ACM 30(9), 1987.
    """
    chosen = np.empty((rows, size), dtype=np.int64)
    for column, last in enumerate(range(pool - size, pool)):
        drawn = generator.integers(last + 1, size=rows)
        taken = (chosen[:, :column] == drawn[:, None]).any(axis=1)
        chosen[:, column] = np.where(taken, last, drawn)
    return chosen


def _with_every_class(chosen: np.ndarray, classes: int, fixed: int, generator: np.random.Generator) -> np.ndarray:
    """Return the choice with each class that nobody holds in the place of one held twice; the first columns are fixed."""
    chosen = chosen.copy()
    counts = np.bincount(chosen.ravel(), minlength=classes)
    for missing in np.flatnonzero(counts == 0):
        rows, columns = np.nonzero(counts[chosen[:, fixed:]] > 1)
        place = generator.integers(len(rows))
        row, column = rows[place], columns[place] + fixed
        counts[chosen[row, column]] -= 1
        chosen[row, column] = missing
        counts[missing] = 1
    return chosen
