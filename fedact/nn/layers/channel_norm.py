"""A layer norm over channels that saves its input compressed."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedact.nn.layers.activations import Smooth
from fedact.nn.layers.base import ChannelNorm
from fedact.torch_private import native_layer_norm_backward


class CompressedChannelNorm(Smooth, ChannelNorm):
    """Layer norm over channels, never trained; its gradient is computed from the reconstructed input."""

    plain: ClassVar[type[nn.Module]] = ChannelNorm

    def forward(self, x: Tensor) -> Tensor:
        if any(parameter.requires_grad for parameter in self.parameters()):
            return self.activate(x)
        return super().forward(x)

    def activate(self, x: Tensor) -> Tensor:
        return ChannelNorm.forward(self, x)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        # Under autocast x, and on a CPU its gradient too, are of a lower type.
        dtype = next(self.parameters(), x).dtype
        last, gradient = (tensor.permute(0, 2, 3, 1).to(dtype) for tensor in (x, grad_output))
        variance, mean = torch.var_mean(last, dim=-1, correction=0, keepdim=True)
        arguments = (last, self.normalized_shape, mean, (variance + self.eps).rsqrt(), self.weight, self.bias)
        return native_layer_norm_backward(gradient, *arguments, [True, False, False])[0].permute(0, 3, 1, 2)
