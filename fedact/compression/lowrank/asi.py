"""``asi``: last step's factors, moved one subspace step towards this step's activation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import factor, gram_spectrum, project, times_gram, unfold
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.lowrank.eigensolver import eigenpairs, finite
from fedact.compression.lowrank.factorization import Factorization, Factors
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.lowrank.subspaces import Subspaces
from fedact.compression.method import State, Traits
from fedact.config.spec import settings

FEW_COLUMNS = 24
"""Columns up to which QR takes no longer than Cholesky."""
WELL_CONDITIONED = 1e4
"""A condition number whose square loses too little of float64 to show in float32."""

LEAST_SIZE = 1e-15
"""A sum of squares down to which float32 holds all the squares that matter."""


@dataclass(frozen=True)
class SubspaceIteration(Subspaces):
    """One step of subspace iteration on last step's bases; the batch's factor anew, from the small core."""

    def feasible(self, ranks: dict[int, int], shape: Sequence[int]) -> dict[int, int]:
        return ranks | {0: min(ranks[0], prod(rank for mode, rank in ranks.items() if mode))}

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        last = self.last_bases(x, state)
        bases = {mode: subspace_step(x, basis, mode) for mode, basis in last.items()} or self.first_bases(x, rule)
        core = project(x, bases)
        if rule.variance is None:
            rank = rule.bounds[0]
        else:
            rank = state.metadata[0] if state.metadata else self.leading_factor(x, 0, rule).shape[1]
        flat = unfold(core, 0)
        batch = leading_examples(flat, min(rank, *flat.shape))
        return (batch.T @ flat).view(batch.shape[1], *core.shape[1:]), {0: batch, **bases}


@settings("asi")
class ASI(LowRank):
    """One warm-started subspace step a mode, at ranks that stay.

    Stores a core and the batch's factor; the factors of the other modes are the state: the next step starts from them, and
    this one's gradient reads them. With last step's Un, the new one is an orthonormal basis of X Xt Un, X the mode-n
    unfolding: a few thin matrix products in place of an eigendecomposition. The batch's factor is computed anew in the small
    core, for its examples are others at every step. Nguyen et al., *Beyond Low-rank Decomposition*, ICML 2025,
    arXiv 2505.05086, section 3.

    variance: above 0, at most 1; the ranks are those of a plan or of the first batch; with neither it nor ranks 0.8. ranks:
    fixed ones, whole numbers from 1, one a mode. max_ranks: caps on the ranks that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> codec = METHODS["asi"](ranks=(4, 40, 5, 5))
    >>> codec.predicted_bytes((16, 96, 14, 14)), codec.predicted_state_bytes((16, 96, 14, 14))
    (16256, 15920)
    """

    name: ClassVar[str] = "asi"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION,
        source="Nguyen et al., Beyond Low-rank Decomposition, ICML 2025, arXiv 2505.05086, section 3",
        reads_state=True,
        fixed_workspace=False,
    )

    @property
    def factorization(self) -> Factorization:
        return SubspaceIteration()


def leading_examples(core: Float[Tensor, "batch rest"], rank: int) -> Float[Tensor, "batch rank"]:
    """Return the leading left singular vectors, or any basis where that is all they span."""
    examples, rest = core.shape
    if rank == rest:
        return orthonormal(core)
    if examples > rest:
        return factor(core, 0, gram_spectrum(core, 0), rank)
    wide = core.double()
    squared = wide @ wide.T
    finite(squared.trace())
    return eigenpairs(squared)[1][:, examples - rank :].flip(1).to(core.dtype)


def subspace_step(x: Tensor, last: Float[Tensor, "dimension rank"], mode: int) -> Float[Tensor, "dimension rank"]:
    """Return an orthonormal basis of the unfolding's image of the last basis: one step of subspace iteration.

    A batch of few examples, or one that says nothing, leaves the directions as they were that it does not reach.
    """
    dimension, rank = last.shape
    if rank == dimension:
        return last
    image = times_gram(x, last, mode)
    size = float(torch.linalg.vector_norm(image))
    if not LEAST_SIZE < size < torch.inf:
        # Squares may be out of float32's range: the same again with the largest element 1.
        largest = finite(torch.stack(x.aminmax()).abs().max())
        if largest == 0:
            return last
        image = times_gram(x / largest, last, mode)
        size = float(torch.linalg.vector_norm(image))
    if size == 0:
        return last
    if rank == 1:
        return image / size
    return orthonormal(torch.add(image, last, alpha=size * torch.finfo(x.dtype).eps))


def orthonormal(columns: Float[Tensor, "dimension rank"]) -> Float[Tensor, "dimension rank"]:
    """Return an orthonormal basis of what the columns span: many by Cholesky in float64, in a part of QR's time."""
    if columns.shape[1] > FEW_COLUMNS:
        wide = columns.double()
        triangle, failed = torch.linalg.cholesky_ex(wide.T @ wide)
        inverse = torch.linalg.solve_triangular(triangle, torch.eye(len(triangle)).to(triangle), upper=False)
        # A Gram matrix squares the condition: below this its rounding in float64 is far less than float32's.
        if not failed and triangle.norm() * inverse.norm() < WELL_CONDITIONED:
            orthogonal: Tensor = (wide @ inverse.T).to(columns.dtype)
            return orthogonal
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
