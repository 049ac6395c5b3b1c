"""Frozen layers: convolutions and norms that save no activation, and dropout that is off."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.compression.operations import Convolution, Normalization
from fedact.nn.layers.base import Swapped
from fedact.nn.layers.compressed import autocast_type, in_type


class _FrozenConvolution(torch.autograd.Function):
    """A convolution with frozen weights, whose input gradient needs no activation; autograd would save the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, operation: Convolution, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.operation, ctx.dtype = x.shape, operation, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return operation.forward(*in_type(dtype, x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.saved_tensors[0].to(grad_output.dtype)
        with torch.autocast(grad_output.device.type, enabled=False):
            grad_input = ctx.operation.input_gradient(ctx.shape, grad_output, weight)
        return grad_input.to(ctx.dtype), None, None, None, None


class FrozenConv2d(Swapped, nn.Conv2d):
    """A convolution that saves no activation (while its weights are frozen)."""

    plain: ClassVar[type[nn.Module]] = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad or x.dim() < 4 or not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        y: Tensor = _FrozenConvolution.apply(x, self.weight, self.bias, Convolution.of(self), autocast_type(x))
        return y


class _FrozenNorm(torch.autograd.Function):
    """Batch norm with fixed statistics, scale and shift: an affine map, whose gradient needs no activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(mean, variance, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        mean, variance, weight = ctx.saved_tensors
        operation = Normalization(mean, variance, ctx.eps)
        return operation.input_gradient(grad_output.shape, grad_output, weight), None, None, None, None, None


class EvalBatchNorm2d(Swapped, nn.BatchNorm2d):
    """Batch norm that uses its running statistics in training too; autograd saves what it needs."""

    plain: ClassVar[type[nn.Module]] = nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)


class FrozenBatchNorm2d(EvalBatchNorm2d):
    """Batch norm that uses its running statistics, and saves no activation (while its scale and shift are frozen)."""

    def forward(self, x: Tensor) -> Tensor:
        trained = self.weight is not None and (self.weight.requires_grad or self.bias.requires_grad)
        if trained or not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _FrozenNorm.apply(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]


class NoDropout(Swapped, nn.Dropout):
    """Dropout that is off in training too."""

    plain: ClassVar[type[nn.Module]] = nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return x


class NoDropout2d(Swapped, nn.Dropout2d):
    """Dropout of channels that is off in training too."""

    plain: ClassVar[type[nn.Module]] = nn.Dropout2d

    def forward(self, x: Tensor) -> Tensor:
        return x
