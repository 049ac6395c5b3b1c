"""Pooling that saves no activation: average pooling needs the input's shape alone, max pooling the maxima's places."""

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from fedact.compression.operations import pair
from fedact.compression.packing import WORDS, pack_codes, unpack_codes
from fedact.nn.layers.base import Saving
from fedact.nn.layers.function import apply, as_output, is_recorded, runs_plain
from fedact.torch_private import (
    adaptive_avg_pool2d_backward,
    avg_pool2d_backward,
    max_pool2d_with_indices,
    max_pool2d_with_indices_backward,
)

MAX_PLACES = 2 ** max(WORDS)
"""The largest window, in elements, whose places can be packed."""
WORK_BYTES, LEAST_BYTES = 48, 2**17
"""What the places of one maximum are computed with, and what may be used for some of them at once."""


def of_shape(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return a tensor of a shape with one element of memory, for kernels that read the shape alone."""
    return like.new_empty(1).expand(*shape)


class _OfShapeAlone(torch.autograd.Function):
    """y = the module's linear map of x, saving x's shape; autograd would save x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: "ShapeAlone") -> Tensor:
        ctx.shape, ctx.module = x.shape, module
        return as_output(module.plain.forward(module, x))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.module.input_gradient(grad_output, of_shape(ctx.shape, grad_output)), None


class ShapeAlone(Saving, nn.Module):
    """A linear map, such as an average pooling, that saves no tensor; ``dimensions``: of a batch."""

    dimensions: ClassVar[int] = 4

    def input_gradient(self, grad_output: Tensor, like: Tensor) -> Tensor:
        """Return the input's gradient; like: a tensor of the input's shape."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != self.dimensions or not is_recorded(x) or runs_plain():
            return super().forward(x)  # type: ignore[no-any-return]
        return apply(_OfShapeAlone, x, self)  # type: ignore[no-any-return]


class ShapeAdaptiveAvgPool2d(ShapeAlone, nn.AdaptiveAvgPool2d):
    """Average pooling to an output size, saving the input's shape alone."""

    plain: ClassVar[type[nn.Module]] = nn.AdaptiveAvgPool2d

    def input_gradient(self, grad_output: Tensor, like: Tensor) -> Tensor:
        return adaptive_avg_pool2d_backward(grad_output, like)


class ShapeAvgPool2d(ShapeAlone, nn.AvgPool2d):
    """Average pooling of windows, saving the input's shape alone."""

    plain: ClassVar[type[nn.Module]] = nn.AvgPool2d

    def input_gradient(self, grad_output: Tensor, like: Tensor) -> Tensor:
        kernel = pair(self.kernel_size)
        settings = (kernel, pair(self.stride), pair(self.padding), self.ceil_mode, self.count_include_pad)
        return avg_pool2d_backward(grad_output, like, *settings, self.divisor_override)


class Windows(NamedTuple):
    """The windows of a max pooling; settings are pairs (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @classmethod
    def of(cls, module: nn.MaxPool2d) -> "Windows":
        """Return the windows of a module."""
        kernel, stride = pair(module.kernel_size), pair(module.stride)
        return cls(kernel, stride, pair(module.padding), pair(module.dilation), module.ceil_mode)

    @property
    def bits(self) -> int:
        """The bits for a place in a window: the smallest of the packable sizes that has room for all places."""
        return next(bits for bits in WORDS if prod(self.kernel) <= 2**bits)

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Return the rows and columns of the output for an input of so many."""
        sizes = []
        for side, kernel, stride, padding, dilation in zip(size, *self[:4], strict=True):
            last = side + 2 * padding - dilation * (kernel - 1) - 1
            count = -(-last // stride) + 1 if self.ceil_mode else last // stride + 1
            # No window begins behind the input and its padding before it.
            sizes.append(count - 1 if self.ceil_mode and (count - 1) * stride >= side + padding else count)
        return sizes

    def pool(self, x: Tensor) -> tuple[Tensor, Int64[Tensor, "batch channels rows columns"]]:
        """Return the pooled x, and every maximum's index in its plane, as torch's."""
        return max_pool2d_with_indices(x, *self)

    def places(self, indices: Int64[Tensor, "batch channels rows columns"], width: int) -> UInt8[Tensor, "..."]:
        """Return every maximum's place in its window (row by row) from its index in its plane of this width."""
        first_row, first_column = self._firsts(indices)
        rows = indices.div(width, rounding_mode="floor")
        columns = indices - rows * width
        rows = rows.sub_(first_row).div_(self.dilation[0], rounding_mode="floor")
        columns = columns.sub_(first_column).div_(self.dilation[1], rounding_mode="floor")
        return rows.mul_(self.kernel[1]).add_(columns).to(torch.uint8)

    def indices(self, places: UInt8[Tensor, "batch channels rows columns"], width: int) -> Int64[Tensor, "..."]:
        """Return the maxima's indices in their planes of this width from their places: the inverse of ``places``."""
        first_row, first_column = self._firsts(places)
        rows = places.long().div_(self.kernel[1], rounding_mode="floor")
        columns = places - rows * self.kernel[1]
        rows = rows.mul_(self.dilation[0]).add_(first_row)
        return rows.mul_(width).add_(columns.mul_(self.dilation[1]).add_(first_column))

    def _firsts(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the windows' first rows and columns; with padding, some are negative."""
        rows, columns = (
            torch.arange(size, device=like.device) * stride - padding
            for size, stride, padding in zip(like.shape[2:], self.stride, self.padding, strict=True)
        )
        return rows[:, None], columns


def _parts(y: Sequence[int], element_size: int) -> list[slice]:
    """Return slices of the channels of a max pooling's output, whose work takes half of its bytes, or ``LEAST_BYTES``."""
    batch, channels, rows, columns = y
    room = max(LEAST_BYTES, prod(y) * element_size // 2)
    count = max(1, room // max(1, WORK_BYTES * batch * rows * columns))
    return [slice(start, start + count) for start in range(0, channels, count)]


def in_rows(x: Tensor) -> bool:
    """Tell whether a channel after another lies in memory, row by row, on a CPU."""
    return x.device.type == "cpu" and x.is_contiguous() and not torch.compiler.is_compiling()


def _pooled(x: Tensor, windows: Windows, keeps_places: bool) -> tuple[Tensor, Tensor | None]:
    """Return the pooled x, and every maximum's place where they are to be kept, a few channels at a time."""
    if not in_rows(x):
        y, indices = windows.pool(x)
        return y, windows.places(indices, x.shape[3]) if keeps_places else None
    y = x.new_empty((*x.shape[:2], *windows.output_size(x.shape[2:])))
    places = torch.empty_like(y, dtype=torch.uint8) if keeps_places else None
    for part in _parts(y.shape, y.element_size()):
        y[:, part], indices = windows.pool(x[:, part])
        if places is not None:
            places[:, part] = windows.places(indices, x.shape[3])
        del indices
    return y, places


class MaxPooling(torch.autograd.Function):
    """y = max pooling of x, saving the maxima's places; autograd would save x, and 8 bytes for every maximum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        y, places = _pooled(x, windows, keeps_places=True)
        assert places is not None
        ctx.save_for_backward(pack_codes(places, windows.bits))
        ctx.shape, ctx.windows = x.shape, windows
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (packed,), windows, shape = ctx.saved_tensors, ctx.windows, ctx.shape
        places = unpack_codes(packed, windows.bits, grad_output.numel()).view(grad_output.shape)
        if torch.is_grad_enabled() or not in_rows(grad_output):
            like = of_shape(shape, grad_output)
            return max_pool2d_with_indices_backward(grad_output, like, *windows, windows.indices(places, shape[3])), None
        grad_input = grad_output.new_empty(shape)
        for part in _parts(grad_output.shape, grad_output.element_size()):
            gradient, indices = grad_output[:, part], windows.indices(places[:, part], shape[3])
            like = of_shape((len(gradient), gradient.shape[1], *shape[2:]), gradient)
            grad_input[:, part] = max_pool2d_with_indices_backward(gradient, like, *windows, indices)
        return grad_input, None


class PlacedMaxPool2d(Saving, nn.MaxPool2d):
    """Max pooling that saves the maxima's places in their windows, packed."""

    plain: ClassVar[type[nn.Module]] = nn.MaxPool2d

    def forward(self, x: Tensor) -> Any:
        windows = Windows.of(self)
        unsupported = self.return_indices or x.dim() != 4 or prod(windows.kernel) > MAX_PLACES
        if unsupported or runs_plain():
            return super().forward(x)
        if is_recorded(x):
            return apply(MaxPooling, x, windows)
        # The plain layer computes every maximum's index too, in 8 bytes.
        return _pooled(x, windows, keeps_places=False)[0] if in_rows(x) else super().forward(x)
