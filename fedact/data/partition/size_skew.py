"""Partitions in which every client has the same mix of classes, and some have more examples than others."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fedact.config.budgets import largest_remainder
from fedact.data.partition.base import Partition, Parts, bounds_of, check_alpha, even_sizes


@dataclass(frozen=True)
class Iid(Partition):
    """Equal shares of a shuffled deck."""

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        return Parts(generator.permutation(len(labels)), bounds_of(even_sizes(len(labels), clients)))


@dataclass(frozen=True)
class Weighted(Partition):
    """Shares of a shuffled deck in proportion to a weight of each client."""

    @abstractmethod
    def weights(self, clients: int, generator: np.random.Generator) -> np.ndarray:
        """Return each client's weight: at least 0, and one above it."""

    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        sizes = sizes_at_least(self.min_partition_size, self.weights(clients, generator), len(labels))
        return Parts(generator.permutation(len(labels)), bounds_of(sizes))


@dataclass(frozen=True)
class Linear(Weighted):
    """The second client holds twice what the first holds, the third three times, and so on; classes are mixed."""

    def weights(self, clients: int, generator: np.random.Generator) -> np.ndarray:
        return np.arange(1.0, clients + 1)


@dataclass(frozen=True)
class Square(Weighted):
    """The second client holds four times what the first holds, the third nine times, and so on; classes are mixed."""

    def weights(self, clients: int, generator: np.random.Generator) -> np.ndarray:
        return np.arange(1.0, clients + 1) ** 2


@dataclass(frozen=True)
class Exponential(Weighted):
    """Each client holds e times what the one before it holds; classes are mixed."""

    def weights(self, clients: int, generator: np.random.Generator) -> np.ndarray:
        # Only proportions count: the last one's weight is 1, and nothing overflows.
        weights: np.ndarray = np.exp(np.arange(1.0, clients + 1) - clients)
        return weights


@dataclass(frozen=True)
class Quantity(Weighted):
    """How much each client holds is drawn from a symmetric Dirichlet distribution; small alpha, unequal clients."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha("quantity", self.alpha)

    def weights(self, clients: int, generator: np.random.Generator) -> np.ndarray:
        return generator.dirichlet(np.full(clients, self.alpha))


def sizes_at_least(minimum: int, weights: np.ndarray, total: int) -> np.ndarray:
    """Return whole numbers that add up to ``total``: the least weights get the minimum, the others what their weight says.

    The total must be enough for the minimum of all. No size is further than one from its share.
    """
    order = np.argsort(weights, kind="stable")
    ascending = weights[order]
    share_of_larger = ascending / np.cumsum(ascending[::-1])[::-1]
    left = total - minimum * np.arange(len(weights))
    # The first whose share of what those below it leave is enough; the last one's is all of it.
    first = int(np.argmax(share_of_larger * left >= minimum))
    above, free = order[first:], left[first]
    more = np.zeros(len(weights))
    more[above] = np.maximum(weights[above] / weights[above].sum() * free - minimum, 0)
    spare = total - minimum * len(weights)
    return minimum + (largest_remainder(more, spare) if spare else np.zeros(len(weights), dtype=int))
