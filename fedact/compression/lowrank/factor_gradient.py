"""The weight gradient of a convolution straight from a core and factors, and when that is the cheaper way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import compose, mode_product, project, unfold
from fedact.compression.operations import Convolution

BATCH, CHANNELS, HEIGHT, WIDTH = range(4)


def factor_gradient(
    core: Float[Tensor, "k1 k2 k3 k4"],
    factors: Mapping[int, Tensor],
    grad_output: Float[Tensor, "batch outputs rows columns"],
    weight: Float[Tensor, "outputs inputs kernel_height kernel_width"],
    operation: Convolution,
    caps: Mapping[int, int] | None = None,
) -> Float[Tensor, "outputs inputs kernel_height kernel_width"]:
    """Return the weight gradient without rebuilding the activation (the paper's equation, for every geometry).

    Batch: the output gradient is contracted with U1. Space: the core is expanded along height and width only, padded
    (padding is linear along rows and columns) and correlated, a convolution with k1 samples and k2 channels. Channels:
    the result is expanded with U2, each group with its own rows of U2. A mode without a factor is not truncated.
    Pointwise, the output gradient is contracted along height and width too; depthwise, the channels are expanded first.
    caps: as for ``project``.
    """
    if is_pointwise(weight.shape, operation) and WIDTH in factors:
        projected = among_components(grad_output, factors, caps)
        left, right = pointwise_product(projected, core, factors)
        return (left @ right).reshape(weight.shape)
    if BATCH in factors:
        grad_output = mode_product(grad_output, factors[BATCH].T, BATCH)
    last = grad_output.is_contiguous(memory_format=torch.channels_last)
    early = (HEIGHT, WIDTH, CHANNELS) if is_depthwise(weight.shape) else (HEIGHT, WIDTH)
    image = compose(core, {mode: factors[mode] for mode in early if mode in factors})
    image = image.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if CHANNELS not in factors or CHANNELS in early:
        return operation.weight_gradient(image, grad_output, weight)
    u2 = factors[CHANNELS]
    # Every output channel meets every one of the k2 channels; the groups come in with the rows of U2.
    small = weight.new_empty(1).expand(weight.shape[0], u2.shape[1], *weight.shape[2:])
    correlated = replace(operation, groups=1).weight_gradient(image, grad_output, small)
    by_group = correlated.reshape(operation.groups, -1, *correlated.shape[1:])
    rows = u2.reshape(operation.groups, -1, u2.shape[1])
    return torch.einsum("gokij,gck->gocij", by_group, rows).flatten(0, 1).contiguous()


def among_components(grad_output: Tensor, factors: Mapping[int, Tensor], caps: Mapping[int, int] | None = None) -> Tensor:
    """Return the output gradient contracted with every factor but the channels'; caps: as for ``project``."""
    return project(grad_output, {mode: u for mode, u in factors.items() if mode != CHANNELS}, caps)


def pointwise_product(
    projected: Tensor, core: Tensor, factors: Mapping[int, Tensor]
) -> tuple[Float[Tensor, "outputs k"], Float[Tensor, "k inputs"]]:
    """Return the two matrices whose product is a pointwise weight gradient; projected: from ``among_components``."""
    left, right = unfold(projected, CHANNELS), unfold(core, CHANNELS).T
    return (left @ right, factors[CHANNELS].T) if CHANNELS in factors else (left, right)


def is_pointwise(weight: Sequence[int], operation: Convolution) -> bool:
    """Tell whether every position of the output is a product with that position of the input alone."""
    plain = (operation.stride, operation.padding, operation.groups) == ((1, 1), (0, 0), 1)
    return plain and tuple(weight[2:]) == (1, 1) and not any(operation.edges)


def is_depthwise(weight: Sequence[int]) -> bool:
    """Tell whether every output channel sees one input channel."""
    return weight[1] == 1


@lru_cache(maxsize=1024)
def factors_are_cheaper(
    ranks: tuple[int, ...], shape: torch.Size, factors: tuple[int, ...], weight: torch.Size, operation: Convolution
) -> bool:
    """Tell whether the gradient from the factors takes fewer multiplications than rebuilding the tensor and correlating it.

    ranks: the core's shape; shape, weight: the tensors'; factors: the modes that have one. With a factor of the channels
    every output meets all k2 channels; without, the groups stay.
    """
    (batch, channels, *space), (k1, k2, *positional) = shape, ranks
    pixels = prod(space)
    outputs, inputs, *kernel = weight
    strides = prod(operation.stride)
    positions = pixels * prod(kernel) // strides
    rebuilding = k1 * k2 * channels * pixels + (batch * k2 * channels * pixels if CHANNELS in factors else 0)
    rebuilt = rebuilding + batch * outputs * inputs * positions
    if is_pointwise(weight, operation) and WIDTH in factors:
        left = prod(positional)
        least = min((rank for rank, size in zip(positional, space, strict=True) if size > 1), default=1)
        contracting = batch * outputs * (pixels * least + k1 * left)
        return contracting + k1 * k2 * left * outputs + k2 * outputs * inputs < rebuilt
    contracting = k1 * batch * outputs * pixels // strides if BATCH in factors else 0
    if is_depthwise(weight) and CHANNELS in factors:
        return contracting + k1 * pixels * k2 * channels + k1 * outputs * positions < rebuilt
    return contracting + k1 * outputs * (k2 if CHANNELS in factors else inputs) * positions < rebuilt
