"""Each client's examples as two arrays for all of them: a client takes a few bytes, and no object, until it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from fedact.config.errors import ConfigError
from fedact.config.seeds import Purpose, generator

HELD_OUT_SHARE = 0.2
FEWEST_HELD_OUT = 2


@dataclass(frozen=True, eq=False)
class Parts(Sequence[np.ndarray]):
    """The positions that each client holds.

    order: int64, all positions, one client's after the other's. bounds: int64 (clients + 1,), where each one's begin, and
    the end.
    """

    order: np.ndarray
    bounds: np.ndarray

    @classmethod
    def by_owner(cls, positions: np.ndarray, owners: np.ndarray, clients: int) -> "Parts":
        """Return the parts in which ``owners[i]`` holds ``positions[i]``; each one's keep the order they are given in."""
        sizes = np.bincount(owners, minlength=clients)
        return cls(positions[np.argsort(owners, kind="stable")], bounds_of(sizes))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, client: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, client: slice) -> "list[np.ndarray]": ...
    def __getitem__(self, client: int | slice) -> "np.ndarray | list[np.ndarray]":
        if isinstance(client, slice):
            return [self[each] for each in range(len(self))[client]]
        own = range(len(self))[client]
        return self.order[self.bounds[own] : self.bounds[own + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """How many positions each client holds."""
        return np.diff(self.bounds)

    def owners(self) -> np.ndarray:
        """Return who holds each position of ``order``."""
        return np.repeat(np.arange(len(self)), self.sizes)


@dataclass(frozen=True, eq=False)
class HeldOutParts(Sequence[tuple[np.ndarray, np.ndarray]]):
    """Each client's (training, held-out) positions, told apart when they are asked for: always in the same way."""

    whole: Parts
    seed: int

    def __len__(self) -> int:
        return len(self.whole)

    @overload
    def __getitem__(self, client: int) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def __getitem__(self, client: slice) -> list[tuple[np.ndarray, np.ndarray]]: ...
    def __getitem__(self, client: int | slice) -> tuple[np.ndarray, np.ndarray] | list[tuple[np.ndarray, np.ndarray]]:
        if isinstance(client, slice):
            return [self[each] for each in range(len(self))[client]]
        own = range(len(self))[client]
        return hold_out(self.whole[own], generator(self.seed, Purpose.HOLD_OUT, client=own))

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return how many examples each client trains on, and how many it holds out."""
        held = held_out_sizes(self.whole.sizes)
        return self.whole.sizes - held, held


def bounds_of(sizes: np.ndarray) -> np.ndarray:
    """Return where pieces of these sizes begin, and the end of the last."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def even_sizes(total: int, pieces: int) -> np.ndarray:
    """Return the sizes of nearly equal pieces, the larger ones first."""
    return total // pieces + (np.arange(pieces) < total % pieces)


def hold_out(positions: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (training, held-out) positions of one client."""
    order = generator.permutation(positions)
    held = int(held_out_sizes(np.array(len(positions))))
    return np.sort(order[held:]), np.sort(order[:held])


def held_out_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return how many of so many examples are held out: none of one or two, of which nothing would be left to train on."""
    held: np.ndarray = np.maximum(FEWEST_HELD_OUT, np.rint(HELD_OUT_SHARE * sizes).astype(np.int64))
    return np.where(sizes > FEWEST_HELD_OUT, held, 0)


ENOUGH_EXAMPLES = 10
"""To train on some and to hold some out."""
LARGEST_ALPHA = 1_000_000


@dataclass(frozen=True)
class Partition(ABC):
    """A rule that deals the positions of labelled examples to clients.

    min_partition_size: no client holds fewer examples. Where a rule leaves some client short, ``deal`` makes it up from who
    holds the most, and what the rule says of classes then holds but for these examples.
    """

    min_partition_size: int = field(default=ENOUGH_EXAMPLES, kw_only=True)

    def __post_init__(self) -> None:
        if self.min_partition_size <= FEWEST_HELD_OUT:
            raise ConfigError(
                f"min_partition_size is at least {FEWEST_HELD_OUT + 1}, as a client holds {FEWEST_HELD_OUT} examples out, "
                f"not {self.min_partition_size}"
            )

    def examples_needed(self, clients: int) -> int:
        """Return the fewest examples that can be dealt to so many clients."""
        return clients * self.min_partition_size

    @abstractmethod
    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        """Return each client's positions; every position is dealt once."""


def check_alpha(name: str, alpha: float) -> None:
    """Raise ConfigError for a concentration that no symmetric Dirichlet distribution has, or one that is even anyway."""
    if not 0 < alpha <= LARGEST_ALPHA:
        raise ConfigError(f"{name}: alpha is above 0 and at most {LARGEST_ALPHA:,}, not {alpha:g}")
