"""Partitions with settings of every kind, what to deal by them, and how their plain definitions deal it."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from fedact.data.partition import Partition
from fedact.data.partition.class_skew import Dirichlet, Pathological, Shards
from fedact.data.partition.size_skew import Exponential, Iid, Linear, Quantity, Square, Weighted, sizes_at_least

RULES = [
    Iid(), Iid(min_partition_size=3), Dirichlet(), Dirichlet(0.01), Dirichlet(1e-5), Dirichlet(1000.0),
    Dirichlet(min_partition_size=17), Dirichlet(self_balancing=True), Dirichlet(1e-5, self_balancing=True),
    Shards(), Shards(1), Shards(7), Shards(3, min_partition_size=5),
    Pathological(), Pathological(1), Pathological(3, min_partition_size=3), Pathological(2, "deterministic"),
    Pathological(3, "first-deterministic"), Pathological(1, "first-deterministic", min_partition_size=4),
    Linear(), Linear(min_partition_size=4), Square(), Exponential(), Exponential(min_partition_size=3),
    Quantity(), Quantity(1e-5), Quantity(1000.0), Quantity(min_partition_size=4),
]  # fmt: skip
MOST_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Case:
    """A rule and what it can deal to so many clients."""

    rule: Partition
    labels: np.ndarray
    clients: int
    seed: int

    def random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def fewest_clients(rule: Partition, classes: int) -> int:
    """Return how many clients it takes that every class is held."""
    if not isinstance(rule, Pathological):
        return 1
    each = rule.num_classes_per_partition
    return classes - each + 1 if rule.class_assignment_mode == "deterministic" else -(-classes // each)


@st.composite
def cases(draw, rules=tuple(RULES)) -> Case:
    """Draw a rule, labels of some classes in any proportions, and clients."""
    rule, seed = draw(st.sampled_from(rules)), draw(st.integers(0, 2**32 - 1))
    fewest_classes = rule.num_classes_per_partition if isinstance(rule, Pathological) else 1
    classes = draw(st.integers(fewest_classes, MOST_CLASSES))
    clients = draw(st.integers(fewest_clients(rule, classes), 25))
    spare = draw(st.integers(0, 150))
    random = np.random.default_rng(seed)
    more = max(0, clients * rule.min_partition_size + spare - classes)
    shares = random.dirichlet(np.full(classes, draw(st.sampled_from([0.1, 1, 100]))))
    # The labels need not be numbered without gaps.
    labels = random.permutation(np.concatenate([np.arange(classes), random.choice(classes, more, p=shares)]))
    return Case(rule, 3 * labels + 1, clients, seed)


def split_plainly(rule: Partition, labels: np.ndarray, clients: int, random: np.random.Generator) -> list[np.ndarray]:
    """Deal as the definitions say, with a list for each client."""
    if isinstance(rule, Iid):
        return np.array_split(random.permutation(len(labels)), clients)
    if isinstance(rule, Weighted):
        sizes = sizes_at_least(rule.min_partition_size, rule.weights(clients, random), len(labels))
        return np.split(random.permutation(len(labels)), np.cumsum(sizes)[:-1])
    if isinstance(rule, Shards):
        shards = np.array_split(np.argsort(labels, kind="stable"), clients * rule.per_client)
        hands = random.permutation(len(shards)).reshape(clients, rule.per_client)
        return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]
    if isinstance(rule, Pathological):
        return pathological_plainly(rule, labels, clients, random)
    assert isinstance(rule, Dirichlet)
    return dirichlet_plainly(rule, labels, clients, random)


def dirichlet_plainly(rule: Dirichlet, labels, clients: int, random) -> list[np.ndarray]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        positions = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(clients, rule.alpha))
        ends = np.cumsum(shares)
        if rule.self_balancing:
            room = [len(part) * clients <= len(labels) for part in parts]
            ends = np.cumsum([share if free else 0.0 for share, free in zip(np.diff(ends, prepend=0), room, strict=True)])
            ends = ends / ends[-1] if ends[-1] else np.cumsum(room) / sum(room)
        for part, piece in zip(parts, np.split(positions, (ends[:-1] * len(positions)).astype(int)), strict=True):
            part.extend(piece)
    return [np.array(part, int) for part in parts]


def pathological_plainly(rule: Pathological, labels, clients: int, random) -> list[np.ndarray]:
    classes = np.unique(labels)
    held = rule.classes_of(clients, len(classes), random).tolist()
    parts: list[list[int]] = [[] for _ in range(clients)]
    for number, label in enumerate(classes):
        holders = [client for client in range(clients) if number in held[client]]
        pieces = np.array_split(random.permutation(np.flatnonzero(labels == label)), len(holders))
        for client, piece in zip(holders, pieces, strict=True):
            parts[client].extend(piece)
    return [np.array(part, int) for part in parts]


def deal_plainly(rule: Partition, labels: np.ndarray, clients: int, random: np.random.Generator) -> list[list[int]]:
    """Whoever holds most, the first of several, gives one at random as long as somebody is short."""
    parts = [list(part) for part in split_plainly(rule, labels, clients, random)]
    for part in parts:
        while len(part) < rule.min_partition_size:
            largest = max(parts, key=len)
            part.append(largest.pop(int(random.integers(len(largest)))))
    return [sorted(part) for part in parts]
