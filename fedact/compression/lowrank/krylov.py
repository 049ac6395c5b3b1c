"""Leading singular vectors of a wide unfolding by a block Krylov method: a few products with thin matrices."""

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import matrix, slabs, times_gram
from fedact.compression.lowrank.eigensolver import eigenpairs
from fedact.compression.lowrank.proof import proven_rank, sure_rank

BLOCK = 8
"""Columns of a thin matrix."""


def squared_norm(x: Tensor) -> float:
    """Return the sum of all squares: float32 inside of a row, float64 over the rows."""
    rows = slabs(x, 0) if x.dim() == 1 else matrix(x, min(range(x.dim()), key=x.stride)).T
    return float(torch.linalg.vector_norm(rows, dim=-1).double().square().sum())


def by_iteration(x: Tensor, mode: int, most: int, variance: float, energy: float) -> Float[Tensor, "dimension rank"] | None:
    """Return an unfolding's leading left singular vectors, as many as explain the variance, at most ``most``.

    Ritz values only rise to the eigenvalues, and by no more than their residuals allow: once not even that could make a
    smaller rank do, and the vectors are accurate, it is done. None where the rank is a large share of the dimension, or in
    doubt. energy: the sum of all squares.
    """
    basis = torch.linalg.qr(_start(slabs(x, mode))).Q
    # Shares of the energy, and residuals that are still in float32's range when they are squared.
    images = times_gram(x, basis, mode).div_(energy)
    while True:
        values, vectors = eigenpairs(basis.T @ images)
        values, vectors = values.flip(0), vectors.flip(1)
        basis, images = basis @ vectors, images @ vectors
        residuals = torch.addcmul(images, basis, values, value=-1)
        listed = values.tolist()
        rank = proven_rank(listed, torch.linalg.vector_norm(residuals, dim=0).tolist(), most, variance, 1.0)
        if rank is not None:
            sure = sure_rank(listed[: rank + 1], most, variance, 1.0)
            return torch.linalg.qr(basis[:, :rank]).Q if sure == rank else None
        columns = basis.shape[1]
        if columns > len(basis) // 4 or (columns > len(basis) // 10 and sum(listed) < variance):
            return None
        # The residuals of the leading pairs are where they can still gain; in larger blocks where the rank is large.
        block = residuals[:, : BLOCK * max(1, columns // (3 * BLOCK))]
        for _ in range(2):
            block = torch.linalg.qr(torch.addmm(block, basis, basis.T @ block, alpha=-1)).Q
        basis, images = torch.cat([basis, block], 1), torch.cat([images, times_gram(x, block, mode).div_(energy)], 1)


def _start(parts: Float[Tensor, "outer dimension inner"]) -> Float[Tensor, "dimension block"]:
    """Return sums of the tensor's fibres with random weights, filled up with noise: no direction is missing from them."""
    outer, dimension, inner = parts.shape
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(outer, inner, generator=random).to(parts)
    count = next(count for count in range(BLOCK, 0, -1) if outer % count == 0)
    if inner == 1:
        sums = torch.bmm(weights.view(count, 1, -1), parts.view(count, -1, dimension))
    else:
        sums = torch.bmm(parts, weights[..., None]).view(count, -1, dimension).sum(1)
    sums = sums.view(count, dimension).T
    return torch.cat([sums, torch.randn(dimension, BLOCK - count, generator=random).to(parts)], 1) if count < BLOCK else sums
