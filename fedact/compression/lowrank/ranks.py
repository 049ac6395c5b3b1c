"""Which ranks a tensor's modes get: given ones, or the smallest that reach an explained variance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import PlainValidator
from torch import Tensor

from fedact.compression.lowrank.algebra import rank_for_variance
from fedact.config.errors import ConfigError
from fedact.config.spec import spelled

Ranks = Annotated[tuple[int, ...] | None, PlainValidator(lambda ranks: None if ranks is None else tuple(ranks))]
"""One rank a mode; a list will do."""


def check_ranks(method: str, ranks: tuple[int, ...], linear: int, several: int, usual: int) -> None:
    """Raise ConfigError unless the ranks are whole numbers from 1, one for each truncated mode of a layer's input.

    linear, several, usual: how many modes those are of a batch of vectors, of tokens or series, and of pictures.
    """
    if len(ranks) in (linear, several, usual) and all(isinstance(rank, int) and rank >= 1 for rank in ranks):
        return
    also = "" if linear == usual else f" ({linear} or {several} for a linear layer's input)"
    raise ConfigError(f"{method}: ranks are {usual} whole numbers from 1{also}, not {spelled(ranks)}")


@dataclass(frozen=True)
class RankRule:
    """The ranks of one tensor's truncated modes.

    bounds: by mode, the given rank, or the most that the variance may ask for. variance: the share to explain in every mode,
    None where the ranks are given. caps: by mode, where the setting ``max_ranks`` bounds the ranks, else empty.
    """

    bounds: Mapping[int, int]
    variance: float | None
    caps: Mapping[int, int]

    def rank(self, mode: int, eigenvalues: Float[Tensor, " count"], variance: float | None = None) -> int:
        """Return a mode's rank for descending eigenvalues of its unfolding; variance: another share than the rule's."""
        if self.variance is None:
            return self.bounds[mode]
        return min(rank_for_variance(eigenvalues, self.variance if variance is None else variance), self.bounds[mode])
