"""The weight gradient of any layer straight from a core and factors: series and tokens are pictures of one row."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedact.compression.accumulation import Total
from fedact.compression.lowrank.factor_gradient import (
    among_components,
    factor_gradient,
    factors_are_cheaper,
    pointwise_product,
)
from fedact.compression.method import PICTURES, SERIES, Compressed, computable
from fedact.compression.operations import Operation
from fedact.compression.plane import ROW, as_plane, plane_of


def factors_are_enough(
    ranks: Sequence[int], shape: torch.Size, modes: Sequence[int], weight: Tensor, operation: Operation
) -> bool:
    """Tell whether the gradient comes from the factors, and in fewer multiplications than from the rebuilt tensor.

    ranks: the core's shape; shape: of the saved input, one of two dimensions has no positions to sum over; modes: those
    that have a factor.
    """
    plane = plane_of(operation)
    if plane is None or len(shape) not in (SERIES, PICTURES):
        return False
    sizes = [tuple(each) if len(each) == PICTURES else (*each[:ROW], 1, *each[ROW:]) for each in (ranks, shape)]
    weights = as_plane(weight).shape
    return factors_are_cheaper(sizes[0], torch.Size(sizes[1]), tuple(_places(modes, len(shape))), weights, plane)


def layer_gradient(
    core: Tensor,
    factors: Mapping[int, Tensor],
    grad_output: Tensor,
    weight: Tensor,
    operation: Operation,
    caps: Mapping[int, int],
) -> Tensor:
    """Return the weight gradient from the factors, in the weight's shape; as ``factor_gradient`` for pictures."""
    plane, dimensions = plane_of(operation), core.dim()
    assert plane is not None
    of_pictures = dict(zip(_places(factors, dimensions), factors.values(), strict=True))
    most = dict(zip(_places(caps, dimensions), caps.values(), strict=True))
    gradient = factor_gradient(as_plane(core), of_pictures, as_plane(grad_output), as_plane(weight), plane, most)
    return gradient.reshape(weight.shape)


def add_linear_gradient(
    total: Total, core: Tensor, factors: Mapping[int, Tensor], grad_output: Tensor, caps: Mapping[int, int]
) -> None:
    """Add the weight gradient of a product with channels from the factors to a total, without a tensor of its size."""
    gradient = total.tensor().flatten(1)
    left, right = pointwise_product(among_components(computable(grad_output), factors, caps), core, factors)
    gradient.addmm_(left.to(gradient.dtype), right.to(gradient.dtype))


def of_means(compressed: Compressed, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stored means, which are the same in every example, as one image, and the summed output gradient."""
    return compressed.tensors[-1].expand(1, *compressed.metadata.shape[1:]), grad_output.sum(0, keepdim=True)


def _places(modes: Iterable[int], dimensions: int) -> list[int]:
    """Return the modes of pictures that those of a tensor with so many dimensions are."""
    return [mode if mode < ROW or dimensions == PICTURES else mode + 1 for mode in modes]
