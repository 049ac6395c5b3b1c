"""Leading eigenvectors of a Gram matrix by subspace iteration with a Chebyshev filter: a part of a full solver's time."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.eigensolver import eigenpairs
from fedact.compression.lowrank.proof import proven_rank, sure_rank

LEAST_COLUMNS, COLUMNS = 16, 3.5
"""Columns of the subspace, at least and for each eigenvalue that would hold the energy if all were equal.

At an explained variance of 0.8 the ranks of activations are two to four times that number."""
DEGREE, FILTERS = 5, 2
"""Of the filter's polynomial, and how often it is applied at most: one of degree 5 does where powers would take a dozen."""
LEAST_BOUND = 1e-6
"""The least eigenvalue above which the filter rises: at 1 its polynomial is then far from the end of float32's range."""


def by_filter(gram: Float[Tensor, "dimension dimension"], most: int, variance: float) -> Tensor | None:
    """Return the leading eigenvectors of a Gram matrix of trace 1, as many as explain the variance, at most ``most``.

    Each filter is a Chebyshev polynomial of the matrix: small up to the least Ritz value of the subspace, steep above it.
    Zhou, Saad, Tiago and Chelikowsky, J. Comput. Phys. 219, 2006. None where the rank is a large share of the dimension,
    for then the full solver is faster, or in doubt.
    """
    count = 1 / float(torch.linalg.vector_norm(gram)) ** 2
    columns = max(LEAST_COLUMNS, 8 * int(1 + COLUMNS / 8 * count * (0.2 / (1 - variance)) ** 0.6))
    if 3 * columns >= len(gram):
        return None
    block = _start(gram, columns)
    for step in range(FILTERS + 1):
        basis = torch.linalg.qr(block).Q
        images = gram @ basis
        values, vectors = eigenpairs(basis.T @ images)
        values, vectors = values.flip(0), vectors.flip(1)
        basis, images, listed = basis @ vectors, images @ vectors, values.tolist()
        if most > columns - 2 and sum(listed[:-2]) < variance:
            return None
        if step:
            norms = torch.linalg.vector_norm(torch.addcmul(images, basis, values, value=-1), dim=0).tolist()
            rank = proven_rank(listed, norms, most, variance, 1.0)
            if rank is not None:
                return basis[:, :rank].clone() if sure_rank(listed[: rank + 1], most, variance, 1.0) == rank else None
        if step < FILTERS:
            block = _filtered(gram, basis, images, max(listed[-1], LEAST_BOUND))
    return None


def _start(gram: Tensor, columns: int) -> Float[Tensor, "dimension columns"]:
    """Return sums of the matrix's columns with random weights: no direction is missing from them."""
    mixed = gram * torch.randn(len(gram), generator=torch.Generator().manual_seed(0)).to(gram)
    even = len(gram) // columns * columns
    block = mixed[:, :even].view(len(gram), -1, columns).sum(1)
    block[:, : len(gram) - even] += mixed[:, even:]
    return block


def _filtered(gram: Tensor, basis: Tensor, images: Tensor, bound: float) -> Tensor:
    """Return T(2 M / bound - 1) times the basis, T the Chebyshev polynomial of degree DEGREE; images: M times the basis."""
    before, block = basis, torch.sub(images * (2 / bound), basis)
    for _ in range(DEGREE - 1):
        # T_(n+1)(z) = 2 z T_n(z) - T_(n-1)(z)
        before, block = block, torch.addmm(before, gram, block, beta=-1, alpha=4 / bound).sub_(block, alpha=2)
    return block
