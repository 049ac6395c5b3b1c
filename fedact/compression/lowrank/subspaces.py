"""What ``asi`` and ``lance`` share: an orthonormal basis of every mode but the batch, as state from step to step."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedact.compression.lowrank.algebra import full_ranks
from fedact.compression.lowrank.factorization import Factorization, Factors
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.method import State


@dataclass(frozen=True)
class Subspaces(Factorization, ABC):
    """Bases as the state, at constant ranks: given ones, or those of the first batch."""

    constant_ranks: ClassVar[bool] = True

    def state_modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(1, dimensions))

    def limits(self, shape: Sequence[int]) -> tuple[int, ...]:
        # A basis lasts longer than a batch: how many examples there are does not bound it.
        return (full_ranks(shape)[0], *shape[1:])

    def continues(self, state: State, shape: Sequence[int], rule: RankRule) -> bool:
        """Tell whether the state's bases are of tensors like this, at the ranks that were given and within the caps."""
        modes = self.state_modes(len(shape))
        if len(state.tensors) != len(modes):
            return False
        return all(
            len(basis) == shape[mode] and (0 if rule.variance else rule.bounds[mode]) <= basis.shape[1] <= rule.bounds[mode]
            for mode, basis in zip(modes, state.tensors, strict=True)
        )

    def first_bases(self, x: Tensor, rule: RankRule) -> Factors:
        """Return the leading singular vectors of a first batch's unfoldings, completed to the given ranks."""
        bases = {mode: self.leading_factor(x, mode, rule) for mode in self.state_modes(x.dim())}
        return bases if rule.variance else {mode: completed(basis, rule.bounds[mode]) for mode, basis in bases.items()}

    def last_bases(self, x: Tensor, state: State) -> Factors:
        """Return the state's bases in x's type, none in a first step."""
        return {mode: basis.to(x.dtype) for mode, basis in zip(self.state_modes(x.dim()), state.tensors, strict=False)}


def completed(basis: Tensor, columns: int) -> Tensor:
    """Return the orthonormal basis with as many columns as asked for: a batch of few examples spans fewer."""
    if basis.shape[1] >= columns:
        return basis
    return torch.cat([basis, torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] : columns]], 1)
