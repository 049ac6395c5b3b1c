"""The leading singular vectors of an unfolding, in float32 where its rounding cannot change how many there are.

Float32 is enough for most tensors: the published rank is where a sum of eigenvalues passes a threshold, and only where
it passes within rounding's reach, or where what is left out is hardly more than rounding, is float64 needed.
"""

from math import ceil, isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import factor, gram_spectrum, matrix, rank_for_variance, slabs, times_gram

DOUBT = 1e-5
"""A share of the variance that float32's rounding may be off by: a threshold this near is decided in float64."""
LEAST_LEFT = 1e-4
"""The least share left out of which float32's rounding is a small part."""
WIDE = 384
"""The smaller side of an unfolding from which a few products with thin matrices are cheaper than its spectrum."""
BLOCK = 16
"""Columns of a thin matrix: as fast to multiply with as fewer."""
INACCURACY = 1e-4
"""The share of the energy left out that the best factor might still have over one found by iteration."""


def leading_factor(x: Tensor, mode: int, most: int, variance: float | None) -> Float[Tensor, "dimension rank"]:
    """Return an unfolding's leading left singular vectors: ``most`` of them, or as few as explain the variance.

    Orthonormal, in x's type and a storage of their own. Raises FloatingPointError where x holds a NaN or an infinity, but
    for a mode that is kept whole: any basis spans it.
    """
    most = min(most, x.shape[mode], x.numel() // x.shape[mode])
    if variance is None and most == x.shape[mode]:
        return torch.eye(most, dtype=x.dtype, device=x.device)
    # At fixed ranks and full variance always in float64, which takes the most memory: a plan counts on that.
    quick = x.dtype is torch.float32 and variance is not None and variance < 1.0
    vectors = _in_float32(x, mode, most, variance) if quick else None
    if vectors is None:
        vectors = _in_float64(x, mode, most, variance)
    # The largest element of each above zero: results do not depend on how the vectors were computed.
    return vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()


def _in_float64(x: Tensor, mode: int, most: int, variance: float | None) -> Tensor:
    """Return the factor from the spectrum in float64."""
    spectrum = gram_spectrum(x, mode)
    rank = most if variance is None else min(most, rank_for_variance(spectrum.eigenvalues, variance))
    return factor(x, mode, spectrum, rank)


def _in_float32(x: Tensor, mode: int, most: int, variance: float | None) -> Tensor | None:
    """Return the factor from products in float32, None where their rounding might change its rank."""
    if min(x.shape[mode], x.numel() // x.shape[mode]) > WIDE:
        energy = squared_norm(x)
        return by_iteration(x, mode, most, variance, energy) if _in_range(energy) else None
    try:
        spectrum = gram_spectrum(x, mode, torch.float32)
    except FloatingPointError:
        return None
    energy = float(spectrum.eigenvalues.sum())
    rank = sure_rank(spectrum.eigenvalues, most, variance, energy) if _in_range(energy) else None
    return None if rank is None else factor(x, mode, spectrum, rank)


def _in_range(energy: float) -> bool:
    """Tell whether a sum of squares in float32 has lost nothing to the range's ends."""
    return isfinite(energy) and energy > torch.finfo(torch.float32).tiny / DOUBT


def squared_norm(x: Tensor) -> float:
    """Return the sum of all squares: float32 inside of a row, float64 over the rows."""
    rows = slabs(x, 0) if x.dim() == 1 else matrix(x, min(range(x.dim()), key=x.stride)).T
    return float(torch.linalg.vector_norm(rows, dim=-1).double().square().sum())


def sure_rank(eigenvalues: Float[Tensor, " count"], most: int, variance: float | None, energy: float) -> int | None:
    """Return the rank for leading eigenvalues from float32 products, None where rounding might change it or count."""
    explained = eigenvalues.cumsum(0) / energy
    rank = most
    if variance is not None:
        if float((explained - variance).abs().min()) < DOUBT:
            return None
        rank = min(most, int((explained < variance).sum()) + 1)
    if rank > len(explained) or float(explained[rank - 1]) > 1 - LEAST_LEFT:
        return None
    return rank


def by_iteration(
    x: Tensor, mode: int, most: int, variance: float | None, energy: float
) -> Float[Tensor, "dimension rank"] | None:
    """Return the leading eigenvectors of an unfolding times its transpose, by a block Krylov method.

    Ritz values only rise to the eigenvalues, and by no more than their residuals allow: once not even that could make a
    smaller rank do, and the vectors are accurate, it is done. None where the rank is a large share of the dimension, or in
    doubt.
    """
    basis = torch.linalg.qr(_start(slabs(x, mode))).Q
    images = times_gram(x, basis, mode)
    while True:
        rayleigh = (basis.T @ images).double()
        values, vectors = torch.linalg.eigh((rayleigh + rayleigh.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1).to(basis.dtype)
        basis, images = basis @ vectors, images @ vectors
        residuals = images - basis * values.to(basis.dtype)
        norms = residuals.norm(dim=0).double()
        rank = _proven_rank(values, norms, most, variance, energy)
        if rank is not None:
            sure = sure_rank(values[: rank + 1], most, variance, energy)
            return torch.linalg.qr(basis[:, :rank]).Q.contiguous() if sure == rank else None
        if basis.shape[1] > len(basis) // 4:
            return None
        # The residuals of the leading pairs are where they can still gain; in larger blocks where the rank is large.
        block = residuals[:, : BLOCK * max(1, basis.shape[1] // (3 * BLOCK))]
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis, images = torch.cat([basis, block], 1), torch.cat([images, times_gram(x, block, mode)], 1)


def _proven_rank(values: Tensor, norms: Tensor, most: int, variance: float | None, energy: float) -> int | None:
    """Return the rank once the residuals allow no smaller one, and hardly better vectors; None before."""
    rank = most
    if variance is not None:
        rank = min(most, int((values.cumsum(0) < variance * energy).sum()) + 1)
        if rank <= len(values) and float(values[: rank - 1].sum()) + _gain(values, norms, rank - 1) >= variance * energy:
            return None
    if rank >= len(values):
        return None
    left = energy - float(values[:rank].sum())
    return rank if _gain(values, norms, rank) <= INACCURACY * left else None


def _gain(values: Tensor, norms: Tensor, rank: int) -> float:
    """Return how much larger the leading eigenvalues' sum may be than that of the Ritz values."""
    gaps = (values[:rank] - values[rank]).clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.minimum(norms[:rank], norms[:rank].square() / gaps).sum())


def _start(parts: Float[Tensor, "outer dimension inner"]) -> Float[Tensor, "dimension block"]:
    """Return some fibres of the tensor with a little noise, so that no direction is missing from their span."""
    outer, dimension, inner = parts.shape
    across = min(outer, BLOCK)
    fibres = parts[:: outer // across, :, :: max(1, inner // ceil(BLOCK / across))]
    fibres = fibres.movedim(1, 0).reshape(dimension, -1)[:, :BLOCK]
    fibres = fibres / fibres.norm(dim=0).clamp_min(torch.finfo(parts.dtype).tiny)
    random: Tensor = torch.randn(fibres.shape, generator=torch.Generator().manual_seed(0)).to(parts)
    return torch.add(fibres, random, alpha=0.01)
