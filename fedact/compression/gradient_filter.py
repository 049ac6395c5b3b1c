"""``gradient_filter``: one number a patch, for the activation and for the output gradient."""

from collections.abc import Sequence
from functools import reduce
from math import ceil, prod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedact.compression.accumulation import Total, add_weight_gradient
from fedact.compression.exact import Exact
from fedact.compression.method import (
    NO_STATE,
    PICTURES,
    SERIES,
    Compressed,
    Method,
    State,
    Sweep,
    Traits,
    item_size,
    shape_of,
)
from fedact.compression.operations import Operation
from fedact.compression.plane import is_pointwise, is_product, plane_of
from fedact.config.spec import settings

DIMENSIONS = SERIES, PICTURES
"""Of a batch that has patches."""


@settings("gradient_filter")
class GradientFilter(Method):
    """Patch means of the activation; the input gradient comes from patch means of the output gradient.

    Stores (B, C, H/p, W/p) means, sizes rounded up: 4 bytes each in float32. Of tokens and series (B, C, T/p): a patch is
    p neighbours in their order, a class token with its first neighbours. Activation x and output gradient g are taken to be
    constant within a patch, so that the weight gradient of a 1x1 convolution, and of a linear layer on tokens, is the sum
    over patches of mean(x) sum(g).
    For 1x1 convolutions of stride 1 both gradients are the paper's; for larger kernels the paper gives every tap the same
    gradient and sums the weights' taps, while here each tap has one of its own: closer to the exact gradient, for the same
    bytes. The input of a linear layer without positions has no patches and is stored exactly.
    Yang et al., *Efficient On-device Training via Gradient Filtering*, CVPR 2023, arXiv 2301.00330, section 3.

    patch: side of a square patch in positions, 1, 2 (default), 4 or 7; those at the lower and right edge may be smaller, and
    1 is exact.

    >>> from fedact.compression import METHODS
    >>> METHODS["gradient_filter"](patch=2).predicted_bytes((16, 96, 14, 14))
    301056
    """

    traits: ClassVar[Traits] = Traits(
        "Yang et al., CVPR 2023, arXiv 2301.00330, section 3",
        published="patch=2",
        sweep=Sweep("patch", (7, 4, 2)),
        exact_input_gradient=False,
        gentlest="patch=1",
    )

    patch: Literal[1, 2, 4, 7] = 2

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((patch_means(x, self.patch).contiguous(),), x.shape)

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return spread(compressed.tensors[0], self.patch, compressed.metadata)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        batch, channels, *positions = shape_of(x)
        return batch * channels * prod(ceil(size / self.patch) for size in positions) * item_size(x)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        if not is_pointwise(operation, weight):
            return super().weight_gradient(compressed, grad_output, weight, operation)
        return operation.weight_gradient(compressed.tensors[0], self._sums(grad_output), weight)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        if is_product(operation, weight):
            add_weight_gradient(total, operation, compressed.tensors[0], self._sums(grad_output), weight)
        else:
            super().add_weight_gradient(total, compressed, grad_output, weight, operation)

    def _sums(self, grad_output: Tensor) -> Tensor:
        """Return the sum of the output gradient over every patch, in which the activation is constant."""
        return patch_means(grad_output, self.patch) * patch_sizes(grad_output, self.patch)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        if grad_output.dim() not in DIMENSIONS or plane_of(operation) is None:
            return operation.input_gradient(shape, grad_output, weight)
        means = patch_means(grad_output, self.patch)
        if not is_pointwise(operation, weight):
            return operation.input_gradient(shape, spread(means, self.patch, grad_output.shape), weight)
        small = operation.input_gradient((*shape[:2], *means.shape[2:]), means, weight)
        return spread(small, self.patch, shape)

    def for_dimensions(self, dimensions: int) -> Method:
        return self if dimensions in DIMENSIONS else Exact()


def patch_means(x: Float[Tensor, "batch channels *positions"], patch: int) -> Float[Tensor, "batch channels *patches"]:
    """Return the mean of every patch, each over the positions that it really has."""
    if x.dim() == SERIES:
        # As a picture of one column: its kernel knows channels that lie side by side in memory.
        column = F.avg_pool2d(x.unsqueeze(-1), (patch, 1), ceil_mode=True, count_include_pad=False)
        return column.squeeze(-1)
    return F.avg_pool2d(x, patch, ceil_mode=True, count_include_pad=False)


def patch_sizes(x: Float[Tensor, "batch channels *positions"], patch: int) -> Float[Tensor, "*patches"]:
    """Return how many positions every patch has."""
    sides = (F.pad(x.new_full((size,), 1.0), (0, -size % patch)).view(-1, patch).sum(1) for size in x.shape[2:])
    return reduce(lambda height, width: height[:, None] * width, sides)


def spread(means: Tensor, patch: int, shape: Sequence[int]) -> Tensor:
    """Return a tensor of the shape in which every position has its patch's value."""
    if len(shape) == SERIES:
        column = F.interpolate(means.unsqueeze(-1), size=[means.shape[2] * patch, 1], mode="nearest")
        return column[:, :, : shape[2], 0]
    if means.is_contiguous(memory_format=torch.channels_last) and not means.is_contiguous():
        # A kernel of PyTorch's that is ten times faster, for channels that lie side by side.
        wide = F.interpolate(means, size=[side * patch for side in means.shape[2:]], mode="nearest")
        return wide[..., : shape[2], : shape[3]]
    rows = means.repeat_interleave(patch, 2)[:, :, : shape[2]]
    return rows.repeat_interleave(patch, 3)[..., : shape[3]]
