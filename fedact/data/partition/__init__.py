"""Who holds which examples; parameter names as in flwr-datasets."""

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace

import numpy as np

from fedact.config.budgets import largest_remainder
from fedact.config.errors import ConfigError
from fedact.config.natural import NATURAL
from fedact.config.spec import build
from fedact.data.partition.base import FEWEST_HELD_OUT, Partition, Parts
from fedact.data.partition.class_skew import Dirichlet, Pathological, Shards
from fedact.data.partition.size_skew import Exponential, Iid, Linear, Quantity, Square

FEWEST_SKEWED = 3
"""Of so few classes none would be skewed by a quarter of them."""

PARTITIONS: dict[str, type[Partition]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "pathological": Pathological,
    "linear": Linear,
    "square": Square,
    "exponential": Exponential,
    "quantity": Quantity,
}
"""The one table of rules that deal; beside them there is what nobody deals (see ``config.natural``)."""


def make_partition(text: str) -> Partition:
    """Return the rule behind a text; raises ConfigError for an unknown name or setting."""
    return build("partition", PARTITIONS, text, others=(NATURAL,))


def partition_examples(partition: Partition, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
    """Return each client's positions, none below the minimum: the largest clients give where the rule left one short.

    Raises ConfigError where there are too few examples for that many clients.
    """
    minimum = partition.min_partition_size
    most = len(labels) // minimum
    if clients > most:
        fewer = len(labels) // clients
        smaller = f", or min_partition_size={fewer} in --partition" if fewer > FEWEST_HELD_OUT else ""
        raise ConfigError(
            f"{clients} clients need at least {minimum} examples each (min_partition_size), but there are {len(labels)}: "
            f"at most {most} clients (--clients), or more examples (--max-examples, where it limits them, or a --dataset "
            f"that has more: synthetic without --max-examples makes what a fleet needs){smaller}"
        )
    parts = partition.split(labels, clients, generator)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[parts.order] = parts.owners()
    for position, client in _gifts(parts, minimum, generator):
        owners[position] = client
    return Parts.by_owner(np.arange(len(labels)), owners, clients)


def _gifts(parts: Parts, minimum: int, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield (position, client that gets it) until nobody holds too few: each comes from who holds the most then."""
    order, sizes = parts.order.copy(), parts.sizes
    # Somebody holds more than the minimum while another holds less, so only those can ever give.
    rich = [(-int(sizes[client]), int(client)) for client in np.flatnonzero(sizes > minimum)]
    heapify(rich)
    for client in np.flatnonzero(sizes < minimum):
        for _ in range(minimum - int(sizes[client])):
            size, giver = -rich[0][0], rich[0][1]
            own = order[parts.bounds[giver] :][:size]
            chosen = int(generator.integers(size))
            yield int(own[chosen]), int(client)
            own[chosen:-1] = own[chosen + 1 :]
            if size - 1 > minimum:
                heapreplace(rich, (1 - size, giver))
            else:
                heappop(rich)


def halves(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two class-skewed halves of the positions, sorted; their sizes differ by at most one, whatever the classes are.

    A quarter of the classes goes wholly to the first half, a quarter to the second, and the rest is shared in one
    proportion: the paper's half fine-tuning, two label shards a class, without its luck. Of three classes, one goes wholly
    to each. A class too large for the room that a half has left is shared instead, and another goes there in its place.
    """
    classes, counts = np.unique(labels, return_counts=True)
    order = generator.permutation(len(classes))
    alone = 1 if len(classes) == FEWEST_SKEWED else len(classes) // 4
    size = len(labels) // 2
    first = _fitting(order, counts, alone, size)
    second = _fitting(order[~np.isin(order, first)], counts, alone, len(labels) - size)
    shared = np.setdiff1d(order, [*first, *second])
    taken = np.zeros(len(classes), dtype=np.int64)
    taken[first] = counts[first]
    if len(shared):
        taken[shared] = largest_remainder(counts[shared], size - int(taken.sum()))
    chosen = _drawn(labels, classes, taken, generator)
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)


def _fitting(order: np.ndarray, counts: np.ndarray, most: int, room: int) -> list[int]:
    """Return the first classes in this order, at most ``most``, whose examples have room together."""
    chosen: list[int] = []
    for number in order.tolist():
        if len(chosen) < most and counts[number] <= room:
            chosen.append(number)
            room -= int(counts[number])
    return chosen


def stratified(labels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``size`` positions with the classes in their proportions (largest remainder)."""
    classes, counts = np.unique(labels, return_counts=True)
    quotas = largest_remainder(counts, min(size, len(labels)))
    return _drawn(labels, classes, quotas, generator)


def _drawn(labels: np.ndarray, classes: np.ndarray, quotas: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return as many random positions of each class as its quota says, sorted."""
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
