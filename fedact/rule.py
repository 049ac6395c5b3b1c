"""What a partition is: a rule that says who holds which examples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from fedact.config.errors import ConfigError
from fedact.parts import FEWEST_HELD_OUT, Parts

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

    @abstractmethod
    def split(self, labels: np.ndarray, clients: int, generator: np.random.Generator) -> Parts:
        """Return each client's positions; every position is dealt once."""


def check_alpha(name: str, alpha: float) -> None:
    """Raise ConfigError for a concentration that no symmetric Dirichlet distribution has, or one that is even anyway."""
    if not 0 < alpha <= LARGEST_ALPHA:
        raise ConfigError(f"{name}: alpha is above 0 and at most {LARGEST_ALPHA:,}, not {alpha:g}")
