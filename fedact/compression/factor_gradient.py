"""The weight gradient of a convolution straight from a core and factors, and when that is the cheaper way."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.operations import Convolution
from fedact.compression.tucker import mode_product

BATCH, CHANNELS, HEIGHT, WIDTH = range(4)


def factor_gradient(
    core: Float[Tensor, "k1 k2 k3 k4"],
    factors: Mapping[int, Tensor],
    grad_output: Float[Tensor, "batch outputs rows columns"],
    weight: Float[Tensor, "outputs inputs kernel_height kernel_width"],
    operation: Convolution,
) -> Float[Tensor, "outputs inputs kernel_height kernel_width"]:
    """Return the weight gradient without rebuilding the activation (the paper's equation, for every geometry).

    Batch: the output gradient is contracted with U1. Space: the core is expanded along height and width only, padded
    (padding is linear along rows and columns) and correlated, a convolution with k1 samples and k2 channels. Channels:
    the result is expanded with U2, each group with its own rows of U2. A mode without a factor is whole already.
    """
    image = core
    for mode in (HEIGHT, WIDTH):
        image = mode_product(image, factors[mode], mode) if mode in factors else image
    if BATCH in factors:
        grad_output = mode_product(grad_output, factors[BATCH].T, BATCH)
    last = grad_output.is_contiguous(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if CHANNELS not in factors:
        return operation.weight_gradient(image, grad_output, weight)
    u2 = factors[CHANNELS]
    # Every output channel meets every one of the k2 channels; the groups come in with the rows of U2.
    small = weight.new_empty(1).expand(weight.shape[0], u2.shape[1], *weight.shape[2:])
    correlated = replace(operation, groups=1).weight_gradient(image, grad_output, small)
    by_group = correlated.reshape(operation.groups, -1, *correlated.shape[1:])
    rows = u2.reshape(operation.groups, -1, u2.shape[1])
    return torch.einsum("gokij,gck->gocij", by_group, rows).flatten(0, 1).contiguous()


def factors_are_cheaper(
    ranks: Sequence[int], shape: Sequence[int], factors: Collection[int], weight: Tensor, operation: Convolution
) -> bool:
    """Compare multiplications: correlating a core of these ranks, or rebuilding the whole shape and correlating that.

    factors: the modes that have one; without one of the channels the groups stay, with one every k2 meets every output.
    """
    (batch, channels, *space), (k1, k2, *_) = shape, ranks
    pixels = prod(space)
    outputs, inputs, *kernel = weight.shape
    strides = prod(operation.stride)
    positions = pixels * prod(kernel) // strides
    contracting = k1 * batch * outputs * pixels // strides if BATCH in factors else 0
    by_factors = contracting + k1 * outputs * (k2 if CHANNELS in factors else inputs) * positions
    rebuilding = k1 * k2 * channels * pixels + (batch * k2 * channels * pixels if CHANNELS in factors else 0)
    return by_factors < rebuilding + batch * outputs * inputs * positions
