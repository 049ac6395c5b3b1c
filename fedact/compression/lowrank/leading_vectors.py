"""The leading singular vectors of an unfolding, in float32 where its rounding cannot change how many there are.

Float32 is enough for most tensors: the published rank is where a sum of eigenvalues passes a threshold, and only where
it passes within rounding's reach, or where what is left out is hardly more than rounding, is float64 needed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import (
    Spectrum,
    factor,
    gram,
    gram_spectrum,
    is_tall,
    matrix,
    rank_for_variance,
)
from fedact.compression.lowrank.chebyshev import by_filter
from fedact.compression.lowrank.eigensolver import eigenpairs
from fedact.compression.lowrank.krylov import by_iteration, squared_norm
from fedact.compression.lowrank.proof import DOUBT, sure_rank

SMALL = 96
"""The smaller side of an unfolding up to which the spectrum of its Gram matrix takes no longer than a part of it."""
WIDE = 384
"""The smaller side from which a few products with thin matrices are cheaper than the Gram matrix."""


def leading_factor(x: Tensor, mode: int, most: int, variance: float | None) -> Float[Tensor, "dimension rank"]:
    """Return an unfolding's leading left singular vectors: ``most`` of them, or as few as explain the variance.

    Orthonormal, in x's type and a storage of their own. Raises FloatingPointError where x holds a NaN or an infinity, but
    for a mode that is kept whole: any basis spans it.
    """
    most = min(most, x.shape[mode], x.numel() // x.shape[mode])
    if variance is None and most == x.shape[mode]:
        return torch.eye(most, dtype=x.dtype, device=x.device)
    # At fixed ranks and full variance always in float64, which takes the most memory: a plan counts on that.
    vectors = None
    if x.dtype is torch.float32 and variance is not None and variance < 1.0:
        vectors = _in_float32(x, mode, most, variance)
    return _in_float64(x, mode, most, variance) if vectors is None else vectors


def quick_spectrum(x: Tensor, mode: int) -> Spectrum:
    """Return an unfolding's spectrum from products in x's own type, where its squares are in range: to choose ranks by.

    What explains less than 1e-6 of the variance is rounding. Raises FloatingPointError where x holds a NaN or an infinity.
    """
    in_range = x.dtype is torch.float32 and _in_range(squared_norm(x))
    return gram_spectrum(x, mode, x.dtype if in_range else torch.float64)


def _in_float64(x: Tensor, mode: int, most: int, variance: float | None) -> Tensor:
    """Return the factor from the spectrum in float64."""
    spectrum = gram_spectrum(x, mode)
    rank = most if variance is None else min(most, rank_for_variance(spectrum.eigenvalues, variance))
    return factor(x, mode, spectrum, rank)


def _in_float32(x: Tensor, mode: int, most: int, variance: float) -> Tensor | None:
    """Return the factor from products in float32, None where their rounding might change its rank."""
    size, tall = x.shape[mode], is_tall(x, mode)
    if min(size, x.numel() // size) > WIDE:
        energy = squared_norm(x)
        if not _in_range(energy):
            return None
        found = by_iteration(x, mode, most, variance, energy)
        if found is not None:
            return found
    unfolded = matrix(x, mode) if tall else None
    squared = gram(x, mode, x.dtype) if unfolded is None else gram(unfolded, 1, x.dtype)
    energy = float(squared.trace())
    if not _in_range(energy):
        return None
    vectors = None
    if len(squared) >= SMALL:
        squared, energy = squared.div_(energy), 1.0
        vectors = by_filter(squared, most, variance)
    if vectors is None:
        vectors = _by_spectrum(squared, most, variance, energy, 0 if tall else size)
    # Through the smaller side vectors of small singular values lose their orthogonality: QR gives it back.
    return vectors if vectors is None or unfolded is None else torch.linalg.qr(unfolded @ vectors).Q


def _by_spectrum(squared: Tensor, most: int, variance: float, energy: float, whole: int) -> Tensor | None:
    values, vectors = eigenpairs(squared)
    rank = sure_rank(values.tolist()[::-1], most, variance, energy, whole)
    return None if rank is None else vectors[:, len(squared) - rank :].flip(1)


def _in_range(energy: float) -> bool:
    """Tell whether a sum of squares in float32 has lost nothing to the range's ends."""
    return torch.finfo(torch.float32).tiny / DOUBT < energy < torch.finfo(torch.float32).max * DOUBT
