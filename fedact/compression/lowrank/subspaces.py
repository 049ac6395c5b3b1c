"""What ``asi`` and ``lance`` share: a basis of every mode but the batch, kept from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedact.compression.lowrank.algebra import full_ranks
from fedact.compression.lowrank.truncated import Factors, Truncated
from fedact.compression.method import State


@dataclass(frozen=True)
class Subspaces(Truncated):
    """Ranks that stay, and bases as the state; with them, the ranks of the first batch."""

    fixed_by_a_plan: ClassVar[bool] = True

    def state_modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(1, dimensions))

    def most(self, shape: Sequence[int]) -> tuple[int, ...]:
        # A basis lasts longer than a batch: how many examples there are does not bound it.
        return (full_ranks(shape)[0], *shape[1:])

    def first_bases(self, x: Tensor) -> Factors:
        """Return the leading singular vectors of a first batch's unfoldings."""
        given = self.clip(self.ranks, x.shape) if self.ranks else {}
        bases = {mode: self.leading_factor(x, mode, x.shape) for mode in self.state_modes(x.dim())}
        return {mode: completed(basis, given.get(mode, 0)) for mode, basis in bases.items()}

    def continues(self, state: State, x: Tensor) -> bool:
        """Tell whether the state's bases are of tensors like x, at the ranks that were given and within the caps."""
        modes = self.state_modes(x.dim())
        if len(state.tensors) != len(modes):
            return False
        bases = dict(zip(modes, state.tensors, strict=True))
        most = self.clip(self.ranks or self.max_ranks, x.shape)
        least = most if self.ranks else dict.fromkeys(modes, 0)
        return all(len(u) == x.shape[mode] and least[mode] <= u.shape[1] <= most[mode] for mode, u in bases.items())

    def last_bases(self, x: Tensor, state: State) -> Factors:
        """Return the state's bases in x's type, none in a first step."""
        return {mode: basis.to(x.dtype) for mode, basis in zip(self.state_modes(x.dim()), state.tensors, strict=False)}


def completed(basis: Tensor, columns: int) -> Tensor:
    """Return the orthonormal basis with as many columns as asked for: a batch of few examples spans fewer."""
    if basis.shape[1] >= columns:
        return basis
    return torch.cat([basis, torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] : columns]], 1)
