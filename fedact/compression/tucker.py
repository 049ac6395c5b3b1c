"""Tensor algebra in PyTorch: unfoldings, spectra, truncation and mode products."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Spectrum(NamedTuple):
    """One mode's eigenvalues (the squared singular values of the unfolding, descending) with eigenvectors.

    Where the unfolding is narrower than it is tall, the vectors are those of the smaller Gram matrix.
    """

    eigenvalues: Float[Tensor, " rank"]
    vectors: Float[Tensor, "side rank"]
    tall: bool


def unfold(x: Tensor, mode: int) -> Float[Tensor, "dimension rest"]:
    """Return the mode-n unfolding: dimension n against all the others in their order."""
    return x.movedim(mode, 0).reshape(x.shape[mode], -1)


def gram_spectrum(x: Tensor, mode: int) -> Spectrum:
    """Return the spectrum of an unfolding from the Gram matrix of its smaller side, in float64.

    A Gram matrix squares the condition number, hence float64; eigenvalues below zero are rounding and become zero.
    Raises FloatingPointError where x holds a NaN or an infinity.
    """
    unfolded = unfold(x, mode).double()
    tall = unfolded.shape[0] > unfolded.shape[1]
    gram = unfolded.T @ unfolded if tall else unfolded @ unfolded.T
    eigenvalues, vectors = torch.linalg.eigh(finite(gram))
    return Spectrum(eigenvalues.flip(0).clamp_min(0), vectors.flip(1), tall)


def svd_spectrum(x: Tensor, mode: int) -> Spectrum:
    """Return the spectrum of an unfolding from its full SVD, as the papers do; raises FloatingPointError as above."""
    vectors, singular_values, _ = torch.linalg.svd(finite(unfold(x, mode)), full_matrices=False)
    return Spectrum(singular_values.double().square(), vectors, tall=False)


SOLVERS: dict[str, Callable[[Tensor, int], Spectrum]] = {"gram": gram_spectrum, "svd": svd_spectrum}


def finite(x: Tensor) -> Tensor:
    """Return x; raises FloatingPointError where it holds a NaN or an infinity."""
    if not x.isfinite().all():
        raise FloatingPointError("a tensor with a NaN or an infinity has no spectrum: training may have diverged")
    return x


def factor(x: Tensor, mode: int, spectrum: Spectrum, rank: int) -> Float[Tensor, "dimension rank"]:
    """Return the leading left singular vectors of an unfolding, orthonormal, in x's type and a storage of their own."""
    vectors = spectrum.vectors[:, :rank]
    if spectrum.tall:
        # Through the smaller side small singular vectors lose their orthogonality: QR gives it back.
        vectors = torch.linalg.qr(unfold(x, mode).double() @ vectors).Q
    return vectors.to(x.dtype).clone(memory_format=torch.contiguous_format)


def rank_for_variance(eigenvalues: Float[Tensor, " rank"], variance: float) -> int:
    """Return the smallest rank whose leading eigenvalues reach the explained variance; 1.0 is the full rank."""
    if variance >= 1.0:
        return len(eigenvalues)
    explained = eigenvalues.cumsum(0)
    return min(int(torch.searchsorted(explained, variance * explained[-1])) + 1, len(eigenvalues))


def mode_product(x: Tensor, matrix: Float[Tensor, "rows columns"], mode: int) -> Tensor:
    """Return x times a matrix along one mode: dimension n goes from columns to rows."""
    product: Tensor = torch.tensordot(matrix, x, dims=([1], [mode]))
    return product.movedim(0, mode)


def project(x: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Return the core x x1 U1^T x2 U2^T ... (the largest reduction first); a mode without a factor stays whole."""
    for mode in sorted(factors, key=lambda mode: factors[mode].shape[1] / factors[mode].shape[0]):
        x = mode_product(x, factors[mode].T, mode)
    return x


def compose(core: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Return core x1 U1 x2 U2 ... (the smallest growth first, which keeps the intermediate results small)."""
    for mode in sorted(factors, key=lambda mode: factors[mode].shape[0] / factors[mode].shape[1]):
        core = mode_product(core, factors[mode], mode)
    return core


def full_ranks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the largest rank that each unfolding of the shape can have."""
    total = prod(shape)
    return tuple(min(size, total // size) for size in shape)
