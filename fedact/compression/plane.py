"""Every layer as a convolution of pictures: a series is a picture of one row, and a linear layer on tokens a 1 x 1."""

from math import prod

from torch import Tensor

from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.operations import Convolution, Operation
from fedact.compression.temporal import Convolution1d

POINTWISE = Convolution(stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1)
ROW = 2
"""The dimension of a picture that series and tokens do not have."""


def plane_of(operation: Operation) -> Convolution | None:
    """Return the convolution that an operation is over pictures, None for a norm."""
    if isinstance(operation, MatrixProduct):
        return POINTWISE
    if isinstance(operation, Convolution1d):
        return operation.plane
    return operation if isinstance(operation, Convolution) else None


def as_plane(x: Tensor) -> Tensor:
    """Return a view of a batch of series, or of a weight, as one of pictures; pictures themselves as they are."""
    while x.dim() < 4:
        x = x.unsqueeze(min(ROW, x.dim()))
    return x


def is_pointwise(operation: Operation, weight: Tensor) -> bool:
    """Tell whether every position of the output is a product with that position of the input alone, group by group."""
    plane = plane_of(operation)
    if plane is None or prod(weight.shape[2:]) != 1:
        return False
    return plane.stride == (1, 1) and not any((*plane.padding, *plane.edges))


def is_product(operation: Operation, weight: Tensor) -> bool:
    """Tell whether an operation multiplies every position's channels by the weight: 1 x 1 convolutions, linear layers."""
    plane = plane_of(operation)
    return plane is not None and plane.groups == 1 and is_pointwise(operation, weight)
