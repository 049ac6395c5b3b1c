"""Weight gradients added to a buffer, without a second tensor of the weight's size."""

from math import prod
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.operations import Convolution, Operation, has_few, rows_of
from fedact.compression.temporal import Convolution1d

SHARE = 4
"""What a weight gradient works with beside its input and output gradient: at most their bytes divided by this ..."""
LEAST_BYTES = 2**16
"""... or so many bytes."""
FACTORS = {"one example, 1 x 1": 0.4, "1 x 1": 2.0, "larger": 10.0}
"""How many times as many elements as its maps a weight has where a matrix product is the faster way; measured on a CPU."""


class Total(Protocol):
    """What gradients are added to."""

    def tensor(self) -> Tensor:
        """Return a contiguous tensor, zeros where nothing was added yet."""

    def add(self, gradient: Tensor) -> None:
        """Add a tensor that nothing else holds."""


def is_large(weight: Tensor, x_shape: torch.Size, grad_output: Tensor) -> bool:
    """Tell whether a weight is so large, also beside the maps of a step, that a second tensor of its size counts."""
    return weight.nbytes >= LEAST_BYTES and 2 * weight.numel() >= prod(x_shape) + grad_output.numel()


def add_weight_gradient(total: Total, operation: Operation, x: Tensor, grad_output: Tensor, weight: Tensor) -> None:
    """Add an operation's weight gradient to a total of the weight's shape, a few input channels at a time."""
    if isinstance(operation, MatrixProduct):
        total.tensor().addmm_(operation.rows(grad_output).T, operation.rows(x))
    elif isinstance(operation, Convolution) and operation.groups == 1:
        _add_convolution(total.tensor(), operation, x, grad_output, weight)
    elif isinstance(operation, Convolution1d) and operation.plane.groups == 1:
        planes = (tensor.unsqueeze(2) for tensor in (x, grad_output, weight))
        _add_convolution(total.tensor().unsqueeze(2), operation.plane, *planes)
    else:
        total.add(operation.weight_gradient(x, grad_output, weight))


def _add_convolution(total: Tensor, operation: Convolution, x: Tensor, grad_output: Tensor, weight: Tensor) -> None:
    """Add the weight gradient of a convolution without groups."""
    if has_few(grad_output) and operation.is_pointwise(weight):
        total.flatten(1).addmm_(rows_of(grad_output).T, rows_of(x))
        return
    taps = prod(weight.shape[2:])
    by_product = _is_product_faster(operation, x, grad_output, weight)
    room = max(LEAST_BYTES, (x.nbytes + grad_output.nbytes) // SHARE) // total.element_size()
    # Beside the maps are alive: some channels' columns and their copy, or their part of the gradient.
    channel = 2 * taps * prod(grad_output.shape[2:]) * len(x) if by_product else weight.shape[0] * taps
    count = max(1, room // channel)
    rows = grad_output.transpose(0, 1).reshape(weight.shape[0], -1) if by_product else None
    for part in (slice(start, start + count) for start in range(0, x.shape[1], count)):
        if rows is None:
            total[:, part].add_(operation.weight_gradient(x[:, part], grad_output, weight[:, part]))
        else:
            columns = _columns(operation, x[:, part], weight)
            total.flatten(1)[:, taps * part.start : taps * part.stop].addmm_(rows, columns.T)


def _is_product_faster(operation: Convolution, x: Tensor, grad_output: Tensor, weight: Tensor) -> bool:
    """Tell whether a product of matrices is the faster way to a weight gradient."""
    kind = "larger" if weight.shape[2:] != (1, 1) else "1 x 1" if len(x) > 1 else "one example, 1 x 1"
    return weight.numel() >= FACTORS[kind] * (x.numel() + grad_output.numel())


def _columns(operation: Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """Return what each weight of these channels is multiplied by: a row a weight, a column a pixel of the output."""
    if operation.is_pointwise(weight):
        return x.transpose(0, 1).reshape(x.shape[1], -1)
    taps = cast(tuple[int, int], weight.shape[2:])
    windows = F.unfold(operation.pad(x), taps, operation.dilation, operation.padding, operation.stride)
    return windows.transpose(0, 1).reshape(windows.shape[1], -1)
