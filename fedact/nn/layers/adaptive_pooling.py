"""Max pooling to an output size, of pictures and series, that saves the maxima's places alone."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.base import Saving
from fedact.nn.layers.function import apply, is_recorded, runs_plain
from fedact.nn.layers.pooling import of_shape
from fedact.torch_private import adaptive_max_pool2d_backward


def place_type(positions: int) -> torch.dtype:
    """Return the smallest whole numbers that the places in a plane of so many positions fit into."""
    return next((kind for kind in (torch.uint8, torch.int16) if positions <= torch.iinfo(kind).max + 1), torch.int32)


class _AdaptiveMaxPooling(torch.autograd.Function):
    """y = max pooling of x to a size, saving each maximum's place in its plane; autograd would save x, and 8 bytes each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Any) -> Tensor:
        y, indices = F.adaptive_max_pool2d_with_indices(x, size)
        ctx.save_for_backward(indices.to(place_type(x.shape[2] * x.shape[3])))
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return adaptive_max_pool2d_backward(grad_output, of_shape(ctx.shape, grad_output), places.long()), None


class PlacedAdaptiveMaxPool2d(Saving, nn.AdaptiveMaxPool2d):
    """Max pooling of pictures to an output size that saves the maxima's places."""

    plain: ClassVar[type[nn.Module]] = nn.AdaptiveMaxPool2d

    def forward(self, x: Tensor) -> Any:
        if self.return_indices or x.dim() != 4 or runs_plain() or not is_recorded(x):
            return super().forward(x)
        return apply(_AdaptiveMaxPooling, x, self.output_size)


class PlacedAdaptiveMaxPool1d(Saving, nn.AdaptiveMaxPool1d):
    """Max pooling of series to an output size that saves the maxima's places."""

    plain: ClassVar[type[nn.Module]] = nn.AdaptiveMaxPool1d

    def forward(self, x: Tensor) -> Any:
        if self.return_indices or x.dim() != 3 or runs_plain() or not is_recorded(x):
            return super().forward(x)
        size = self.output_size if isinstance(self.output_size, int) else self.output_size[0]
        return apply(_AdaptiveMaxPooling, x.unsqueeze(2), (1, size)).squeeze(2)
