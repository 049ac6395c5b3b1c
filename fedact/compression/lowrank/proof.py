"""Which rank leading eigenvalues give for sure, where they are float32's, or Ritz values that may still rise."""

from collections.abc import Sequence
from sys import float_info

DOUBT = 1e-5
"""A share of the variance that float32's rounding may be off by: a threshold this near is decided in float64."""
LEAST_LEFT = 1e-4
"""The least share left out of which float32's rounding is a small part."""
INACCURACY = 1e-4
"""The share of the energy left out that the best factor might still have over one found by iteration."""


def sure_rank(values: Sequence[float], most: int, variance: float, energy: float, whole: int = 0) -> int | None:
    """Return the rank for leading eigenvalues from float32 products, None where rounding might change it or count.

    values: descending, all of them or enough. whole: a rank that leaves nothing out.
    """
    explained = 0.0
    for rank, value in enumerate(values, 1):
        explained += max(value, 0.0) / energy
        if abs(explained - variance) < DOUBT:
            return None
        if rank == most or explained > variance:
            return rank if rank == whole or explained <= 1 - LEAST_LEFT else None
    return None


def proven_rank(
    values: Sequence[float], residuals: Sequence[float], most: int, variance: float, energy: float
) -> int | None:
    """Return the rank once the residuals allow no smaller one, and hardly better vectors; None before.

    values: Ritz values, descending, which only rise to the eigenvalues. residuals: the norms of the pairs' residuals.
    """
    explained = 0.0
    for rank, value in enumerate(values[:-1], 1):
        if rank == most or explained + value >= variance * energy:
            break
        explained += value
    else:
        return None
    if explained + _gain(values, residuals, rank - 1) >= variance * energy:
        return None
    left = energy - explained - value
    return rank if _gain(values, residuals, rank) <= INACCURACY * left else None


def _gain(values: Sequence[float], residuals: Sequence[float], rank: int) -> float:
    """Return how much larger the leading eigenvalues' sum may be than that of the Ritz values."""
    pairs = zip(values[:rank], residuals, strict=False)
    return sum(min(norm, norm**2 / max(value - values[rank], float_info.min)) for value, norm in pairs)
