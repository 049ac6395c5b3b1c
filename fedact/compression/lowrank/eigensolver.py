"""Eigenvectors of a symmetric matrix, whichever finite one it is: LAPACK's solvers do not converge for every matrix."""

from collections.abc import Callable
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

Eigenpairs = tuple[Float[Tensor, " size"], Float[Tensor, "size size"]]
"""Eigenvalues, ascending, and eigenvectors."""


def finite(x: Tensor) -> Tensor:
    """Return x; raises FloatingPointError where it holds a NaN or an infinity."""
    if not (x.isfinite().all() if x.dim() else isfinite(x.item())):
        raise FloatingPointError("a tensor with a NaN or an infinity has no spectrum: training may have diverged")
    return x


def eigenpairs(symmetric: Float[Tensor, "size size"]) -> Eigenpairs:
    """Return the eigenvalues, ascending, and eigenvectors of a matrix without eigenvalues below zero, but for rounding.

    Only the lower triangle is read. Where the solver does not converge, again in float64, with the largest element 1; where
    that does not either, by the SVD. Raises FloatingPointError where the matrix holds a NaN or an infinity.
    """
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = _carefully(finite(symmetric).double())
    return values.to(symmetric.dtype), vectors.to(symmetric.dtype)


def _carefully(symmetric: Tensor) -> Eigenpairs:
    size = symmetric.abs().max().clamp_min(torch.finfo(symmetric.dtype).tiny)
    scaled = symmetric / size
    solvers: list[Callable[[Tensor], Eigenpairs]] = [torch.linalg.eigh, _by_svd]
    for solver in solvers:
        try:
            values, vectors = solver(scaled)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            failure = error
        else:
            return values * size, vectors
    raise failure


def _by_svd(symmetric: Tensor) -> Eigenpairs:
    vectors, values, _ = torch.linalg.svd(symmetric.tril() + symmetric.tril(-1).T)
    return values.flip(0), vectors.flip(1)
