"""Which ranks a tensor's modes get: given ones, or the smallest that reach an explained variance."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import rank_for_variance


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
