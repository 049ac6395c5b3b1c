"""Limit lines of a gradient's error against bytes, by a Gaussian model of the trained layers' inputs.

Each input is split into transform coefficients: its channels' principal axes, and cosines in space. A coefficient's *energy*
is w s^2: s^2 its mean square over the images, w the squared error of the weight gradient for an error of 1 in it, the mean
over the images. Were coefficients independent and Gaussian, reverse water-filling would take the least bits for an error. A
model and no bound: they are neither, and here the decoder is told axes and energies for nothing.
"""

from collections.abc import Iterable
from math import e, log2, pi
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.operations import Convolution
from fedact.compression.transform import matrices
from fedact.measure.equal_cosine import CapturedConvolution

SCALAR_EXCESS = 0.5 * log2(pi * e / 6)
"""Bits a sample of entropy-coded scalar quantisation above the Gaussian rate, 0.255 (Gish and Pierce, 1968)."""
STEPS = 96
"""Points of a line."""
LEAST_ERROR = 1e-5
"""Relative squared error at which a line ends."""


class RatePoint(NamedTuple):
    """bits: of the Gaussian rate. scalar_bits: of entropy-coded scalar quantisation. distortion: the squared error."""

    bits: float
    scalar_bits: float
    distortion: float


class LimitPoint(NamedTuple):
    """Bytes of all coded inputs of a step, and the gradient's squared error relative to its square."""

    gaussian_bytes: float
    scalar_bytes: float
    error: float


def reverse_water_filling(energies: Float[Tensor, " coefficients"], level: float) -> RatePoint:
    """Return rate and distortion of independent Gaussian coefficients with these energies, at a water level above 0.

    Rate = 1/2 sum max(0, log2(energy / level)), distortion = sum min(energy, level): a coefficient below the level is not
    coded. Scalar quantisation takes SCALAR_EXCESS more for each coded one.

    >>> reverse_water_filling(torch.tensor([4.0, 4.0, 4.0]), 1.0)[::2]  # three times 1/2 log2(4 / 1)
    (3.0, 3.0)
    """
    coded = energies[energies > level].double()
    bits = 0.5 * float((coded / level).log2().sum())
    return RatePoint(bits, bits + SCALAR_EXCESS * len(coded), float(energies.double().clamp(max=level).sum()))


def limit_line(layers: Iterable[CapturedConvolution], share: float = 1.0) -> list[LimitPoint]:
    """Return the model's points for all trained layers of one step together, the fewest bytes first.

    share: of the batch's inputs that is stored at once, where the step is taken in micro-batches.
    """
    layers = list(layers)
    images = len(layers[0].x)
    energies = torch.cat([coefficient_energies(layer).flatten() for layer in layers])
    squared_norm = sum(float(layer.exact.double().square().sum()) for layer in layers)
    highest = float(energies.max())
    lowest = LEAST_ERROR * squared_norm / (images * len(energies))
    if not 0 < lowest < highest:
        return []
    levels = [highest * (lowest / highest) ** (step / (STEPS - 1)) for step in range(STEPS)]
    points = [reverse_water_filling(energies, level) for level in levels]
    scale = share * images / 8
    return [
        LimitPoint(scale * point.bits, scale * point.scalar_bits, images * point.distortion / squared_norm)
        for point in points
    ]


def coefficient_energies(layer: CapturedConvolution) -> Float[Tensor, "groups channels height width"]:
    """Return the energy w s^2 of every coefficient of a layer's input, of one image.

    The axes are those of each group's channels over all images and positions.
    """
    groups = layer.operation.groups
    x = layer.x.double()
    images, channels, height, width = x.shape
    x = cosine_matrix(height).to(x) @ x @ cosine_matrix(width).to(x).T
    grouped = x.view(images, groups, channels // groups, height, width)
    covariance = torch.einsum("bgchw,bgdhw->gcd", grouped, grouped)
    axes = torch.linalg.eigh(covariance).eigenvectors
    mean_squares = torch.einsum("gck,bgchw->bgkhw", axes, grouped).square().mean(0)
    return mean_squares * gradient_weights(layer)[:, None]


def gradient_weights(layer: CapturedConvolution) -> Float[Tensor, "groups height width"]:
    """Return w: the weight gradient's squared error for an error of 1 in a coefficient, the mean over the images.

    It is the same for each channel of a group, whose every tap meets the output gradient at the places of its own.
    """
    operation, d = layer.operation, layer.grad_output.double()
    height, width = layer.x.shape[2:]
    left, _, top, _ = operation.edges
    total = torch.zeros(operation.groups, height, width, dtype=d.dtype, device=d.device)
    for row in range(layer.weight.shape[2]):
        down = _tap_matrix(height, d.shape[2], operation, 0, row, top).to(d)
        for column in range(layer.weight.shape[3]):
            across = _tap_matrix(width, d.shape[3], operation, 1, column, left).to(d)
            met = (down @ d @ across.T).square().mean(0)
            total += met.view(operation.groups, -1, height, width).sum(1)
    return total


def cosine_matrix(size: int) -> Float[Tensor, "frequencies positions"]:
    """Return the orthonormal cosine transform (DCT-II) of so many positions."""
    return torch.from_numpy(matrices.cosine_matrix(size))


def _tap_matrix(size: int, outputs: int, operation: Convolution, side: int, tap: int, edge: int) -> Tensor:
    """Return the cosine transform at the input positions that a tap meets from each output, 0 where that is padding."""
    places = torch.arange(outputs) * operation.stride[side] + tap * operation.dilation[side]
    places = places - operation.padding[side] - edge
    inside = (places >= 0) & (places < size)
    matrix: Tensor = cosine_matrix(size)[:, places.clamp(0, size - 1)] * inside
    return matrix
