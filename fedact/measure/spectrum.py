"""Spectra of one layer's activation, and the bytes and gradient error of HOSVD at each explained variance."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression import make_method
from fedact.compression.lowrank.algebra import SOLVERS, rank_for_variance
from fedact.measure.equal_cosine import CapturedConvolution
from fedact.measure.gradient_error import weight_error
from fedact.measure.memory import stored_bytes

MODES = ("batch", "channel", "height", "width")


@dataclass(frozen=True)
class Truncation:
    """HOSVD of a tensor at one explained variance.

    variance: explained in every mode, at least; kept_variance: of the whole tensor, by core and factors. ranks: one a mode.
    bytes: of core and factors. error: ||g' - g||^2 / ||g||^2 of the weight gradient g' computed from them, for g the exact
    one; cosine: of the two.
    """

    variance: float
    kept_variance: float
    ranks: tuple[int, ...]
    bytes: int
    error: float
    cosine: float


def spectra(x: Float[Tensor, "batch channel height width"]) -> dict[str, Float[Tensor, " rank"]]:
    """Return, by mode, the share of variance of each component, the largest first; they add up to 1."""
    eigenvalues = {name: SOLVERS["gram"](x, mode).eigenvalues for mode, name in enumerate(MODES)}
    return {name: values / values.sum() for name, values in eigenvalues.items()}


def components_for(x: Tensor, variance: float) -> dict[str, tuple[int, int]]:
    """Return, by mode, how many components explain this share of the variance, and how many there are."""
    return {name: (rank_for_variance(share, variance), len(share)) for name, share in spectra(x).items()}


def truncations(layer: CapturedConvolution, variances: Iterable[float], settings: str = "") -> list[Truncation]:
    """Return HOSVD of a layer's input at each explained variance.

    settings: of HOSVD beside the variance, such as ``,bits=8``.
    """
    results = []
    for variance in variances:
        method = make_method(f"hosvd:variance={variance}{settings}")
        compressed = method.compress(layer.x)
        gradient = method.weight_gradient(compressed, layer.grad_output, layer.weight, layer.operation)
        lost = torch.linalg.vector_norm(layer.x - method.reconstruct(compressed)).square()
        weight = weight_error([gradient], layer.exact)
        results.append(
            Truncation(
                variance=variance,
                kept_variance=1 - float(lost / layer.x.square().sum()),
                ranks=tuple(rank for rank, _ in components_for(layer.x, variance).values()),
                bytes=stored_bytes(compressed.tensors),
                error=(weight.bias + weight.variance) / weight.squared_norm,
                cosine=weight.cosine,
            )
        )
    return results
