"""Tensor algebra in PyTorch: unfoldings, spectra, truncation and mode products."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.errors import ConfigError


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


def spectrum(x: Tensor, mode: int) -> Spectrum:
    """Return the spectrum of an unfolding from the Gram matrix of its smaller side, in float64.

    A Gram matrix squares the condition number, hence float64; eigenvalues below zero are rounding and become zero.
    Raises FloatingPointError where x holds a NaN or an infinity.
    """
    unfolded = unfold(x, mode).double()
    tall = unfolded.shape[0] > unfolded.shape[1]
    gram = unfolded.T @ unfolded if tall else unfolded @ unfolded.T
    if not gram.isfinite().all():
        raise FloatingPointError("a tensor with a NaN or an infinity has no spectrum: training may have diverged")
    eigenvalues, vectors = torch.linalg.eigh(gram)
    return Spectrum(eigenvalues.flip(0).clamp_min(0), vectors.flip(1), tall)


def spectra(x: Tensor) -> list[Spectrum]:
    """Return the spectrum of every mode."""
    return [spectrum(x, mode) for mode in range(x.dim())]


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


def compose(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return core x1 U1 x2 U2 ... (the smallest growth first, which keeps the intermediate results small)."""
    modes = sorted(range(len(factors)), key=lambda mode: factors[mode].shape[0] / factors[mode].shape[1])
    for mode in modes:
        core = mode_product(core, factors[mode], mode)
    return core


def full_ranks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the largest rank that each unfolding of the shape can have."""
    total = prod(shape)
    return tuple(min(size, total // size) for size in shape)


def clip_ranks(ranks: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the ranks, none above what its unfolding can have; raises ConfigError where their number is wrong."""
    if len(ranks) != len(shape):
        raise ConfigError(f"{len(ranks)} ranks are given for a tensor of {len(shape)} dimensions")
    return tuple(min(rank, most) for rank, most in zip(ranks, full_ranks(shape), strict=True))


def tucker_elements(ranks: Sequence[int], shape: Sequence[int]) -> int:
    """Return the number of elements of a core with these ranks and of its factors."""
    return prod(ranks) + sum(rank * size for rank, size in zip(ranks, shape, strict=True))
