"""``asi``: last step's factors, moved one subspace step towards this step's activation."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.method import State
from fedact.compression.subspaces import Subspaces
from fedact.compression.truncated import Factors
from fedact.compression.tucker import factor, full_ranks, gram_spectrum, mode_product, project, times_gram


@dataclass(frozen=True)
class ASI(Subspaces):
    """One warm-started subspace step a mode, at ranks that stay.

    variance: the ranks are those of a plan's or of the first batch; ranks: given ones, one a mode; max_ranks: caps.
    The factors of all modes but the batch are the state: the next step starts from them, and this one's gradient reads them.
    The batch's factor is found anew in the small core, for its examples are others at every step.
    """

    name: ClassVar[str] = "asi"
    source: ClassVar[str] = "Nguyen et al., Beyond Low-rank Decomposition, ICML 2025, arXiv 2505.05086, section 3"

    def decompose(self, x: Tensor, state: State) -> tuple[Tensor, Factors]:
        last = self.last_bases(x, state)
        bases = {mode: subspace_step(x, basis, mode) for mode, basis in last.items()} or self.first_bases(x)
        core = project(x, bases)
        rank = state.about[0] if state.about and self.ranks is None else self._first_rank(x)
        batch = factor(core, 0, gram_spectrum(core, 0), min(rank, full_ranks(core.shape)[0]))
        return mode_product(core, batch.T, 0), {0: batch, **bases}

    def _first_rank(self, x: Tensor) -> int:
        """Return the batch's rank in a first step."""
        return self.clip(self.ranks, x.shape)[0] if self.ranks else self.leading_factor(x, 0, x.shape).shape[1]

    def clip(self, ranks: Sequence[int] | None, shape: Sequence[int]) -> dict[int, int]:
        clipped = super().clip(ranks, shape)
        return clipped | {0: min(clipped[0], prod(rank for mode, rank in clipped.items() if mode))}


def subspace_step(x: Tensor, last: Float[Tensor, "dimension rank"], mode: int) -> Float[Tensor, "dimension rank"]:
    """Return an orthonormal basis of the unfolding's image of the last basis: one step of subspace iteration.

    A batch of few examples, or one that says nothing, leaves the directions as they were that it does not reach.
    """
    image = times_gram(x, last, mode)
    size = image.norm()
    if size == 0:
        return last
    basis: Tensor = torch.linalg.qr(image + torch.finfo(x.dtype).eps * size * last).Q
    return basis
