"""Who holds which examples; parameter names as in flwr-datasets."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

import numpy as np

from fedact.errors import ConfigError
from fedact.parts import Parts, bounds_of

MIN_CLIENT_EXAMPLES = 10
"""Enough to train on some and to hold some out."""
LARGEST_ALPHA = 1_000_000


@dataclass(frozen=True)
class Partition(ABC):
    """A rule that deals the positions of labelled examples to clients."""

    @abstractmethod
    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        """Return each client's positions; every position is dealt once."""


@dataclass(frozen=True)
class Iid(Partition):
    """Equal shares of a shuffled deck."""

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        return Parts(generator.permutation(len(labels)), bounds_of(even_sizes(len(labels), clients)))


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each class is shared out in proportions drawn from a symmetric Dirichlet distribution; small alpha, skewed clients."""

    alpha: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= LARGEST_ALPHA:
            raise ConfigError(f"dirichlet: alpha is above 0 and at most {LARGEST_ALPHA:,}, not {self.alpha:g}")

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        dealt, owners = [], []
        for label in np.unique(labels):
            positions = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(clients, self.alpha))
            cuts = (np.cumsum(shares)[:-1] * len(positions)).astype(int)
            dealt.append(positions)
            owners.append(np.repeat(np.arange(clients), np.diff(cuts, prepend=0, append=len(positions))))
        return Parts.by_owner(np.concatenate(dealt), np.concatenate(owners), clients)


@dataclass(frozen=True)
class Shards(Partition):
    """The examples sorted by label are cut into equal shards, of which each client is dealt a few."""

    per_client: int = 2

    def __post_init__(self) -> None:
        if self.per_client < 1:
            raise ConfigError(f"shards: per_client is at least 1, not {self.per_client}")

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


PARTITIONS: dict[str, type[Partition]] = {"iid": Iid, "dirichlet": Dirichlet, "shards": Shards}
"""The one table of partitions."""


def deal(partition: Partition, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
    """Return each client's positions, none below the minimum: the largest clients give where the rule left one short.

    Raises ConfigError where there are too few examples for that many clients.
    """
    most = len(labels) // MIN_CLIENT_EXAMPLES
    if clients > most:
        raise ConfigError(
            f"{clients} clients need at least {MIN_CLIENT_EXAMPLES} examples each, but there are {len(labels)}: "
            f"at most {most} clients, or more examples"
        )
    parts = partition.split(labels, clients, generator)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[parts.order] = parts.owners()
    for position, client in _gifts(parts, generator):
        owners[position] = client
    return Parts.by_owner(np.arange(len(labels)), owners, clients)


def _gifts(parts: Parts, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield (position, client that gets it) until nobody holds too few: each comes from who holds the most then."""
    order, sizes = parts.order.copy(), parts.sizes
    # Somebody holds more than the minimum while another holds less, so only those can ever give.
    rich = [(-int(sizes[client]), int(client)) for client in np.flatnonzero(sizes > MIN_CLIENT_EXAMPLES)]
    heapify(rich)
    for client in np.flatnonzero(sizes < MIN_CLIENT_EXAMPLES):
        for _ in range(MIN_CLIENT_EXAMPLES - int(sizes[client])):
            size, giver = -rich[0][0], rich[0][1]
            own = order[parts.bounds[giver] :][:size]
            chosen = int(generator.integers(size))
            yield int(own[chosen]), int(client)
            own[chosen:-1] = own[chosen + 1 :]
            if size - 1 > MIN_CLIENT_EXAMPLES:
                heapreplace(rich, (1 - size, giver))
            else:
                heappop(rich)


def halves(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two class-skewed halves by label shards, two shards a class (the paper's half fine-tuning).

    A quarter of the classes goes wholly to the first half, a quarter to the second, and the rest one shard to each: what
    dealing the shards at random gives on average, without its luck.
    """
    classes = generator.permutation(np.unique(labels))
    alone = len(classes) // 4
    shards = {label: np.array_split(generator.permutation(np.flatnonzero(labels == label)), 2) for label in classes}
    first = [shard for label in classes[:alone] for shard in shards[label]]
    second = [shard for label in classes[alone : 2 * alone] for shard in shards[label]]
    first += [shards[label][0] for label in classes[2 * alone :]]
    second += [shards[label][1] for label in classes[2 * alone :]]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def even_sizes(total: int, pieces: int) -> np.ndarray:
    """Return the sizes of nearly equal pieces, the larger ones first."""
    return total // pieces + (np.arange(pieces) < total % pieces)


def stratified(labels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``size`` positions with the classes in their proportions (largest remainder)."""
    classes, counts = np.unique(labels, return_counts=True)
    quotas = largest_remainder(counts, min(size, len(labels)))
    return _drawn(labels, classes, quotas, generator)


def in_proportions_of(labels: np.ndarray, reference: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return as many positions as possible whose classes stand in the proportions of the reference labels.

    The labels must hold every class of the reference.
    """
    classes, counts = np.unique(reference, return_counts=True)
    available = np.array([np.count_nonzero(labels == label) for label in classes])
    total = int(np.min(available * counts.sum() / counts))
    quotas = np.minimum(np.round(total * counts / counts.sum()).astype(int), available)
    return _drawn(labels, classes, quotas, generator)


def _drawn(labels: np.ndarray, classes: np.ndarray, quotas: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return as many random positions of each class as its quota says, sorted."""
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers that add up to ``total`` in proportion to the shares."""
    scaled = np.asarray(shares, dtype=float) / np.max(shares)
    exact = scaled * total / scaled.sum()
    floors: np.ndarray = np.floor(exact).astype(int)
    order = np.argsort(floors - exact, kind="stable")
    floors[order[: total - floors.sum()]] += 1
    return floors
