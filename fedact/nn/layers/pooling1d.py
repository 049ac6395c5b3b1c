"""Pooling of series (batch, channels, time), as that of pictures of one row."""

from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from fedact.nn.layers.base import Saving
from fedact.nn.layers.function import apply, is_recorded, runs_plain
from fedact.nn.layers.pooling import MAX_PLACES, MaxPooling, ShapeAlone, Windows
from fedact.torch_private import adaptive_avg_pool2d_backward, avg_pool2d_backward


def single(setting: int | tuple[int, ...]) -> int:
    """Return a layer's setting along time: a number, alone or in a tuple."""
    return setting if isinstance(setting, int) else setting[0]


class ShapeAdaptiveAvgPool1d(ShapeAlone, nn.AdaptiveAvgPool1d):
    """Average pooling to an output size, saving the input's shape alone."""

    plain: ClassVar[type[nn.Module]] = nn.AdaptiveAvgPool1d
    dimensions: ClassVar[int] = 3

    def input_gradient(self, grad_output: Tensor, like: Tensor) -> Tensor:
        return adaptive_avg_pool2d_backward(grad_output.unsqueeze(2), like.unsqueeze(2)).squeeze(2)


class ShapeAvgPool1d(ShapeAlone, nn.AvgPool1d):
    """Average pooling of windows, saving the input's shape alone."""

    plain: ClassVar[type[nn.Module]] = nn.AvgPool1d
    dimensions: ClassVar[int] = 3

    def input_gradient(self, grad_output: Tensor, like: Tensor) -> Tensor:
        kernel, stride, padding = (single(setting) for setting in (self.kernel_size, self.stride, self.padding))
        settings = (1, kernel), (1, stride), (0, padding), self.ceil_mode, self.count_include_pad, None
        return avg_pool2d_backward(grad_output.unsqueeze(2), like.unsqueeze(2), *settings).squeeze(2)


class PlacedMaxPool1d(Saving, nn.MaxPool1d):
    """Max pooling that saves the maxima's places in their windows, packed."""

    plain: ClassVar[type[nn.Module]] = nn.MaxPool1d

    def forward(self, x: Tensor) -> Any:
        kernel, stride, padding, dilation = map(single, (self.kernel_size, self.stride, self.padding, self.dilation))
        windows = Windows((1, kernel), (1, stride), (0, padding), (1, dilation), self.ceil_mode)
        unsupported = self.return_indices or x.dim() != 3 or prod(windows.kernel) > MAX_PLACES
        if unsupported or runs_plain() or not is_recorded(x):
            return super().forward(x)
        return apply(MaxPooling, x.unsqueeze(2), windows).squeeze(2)
