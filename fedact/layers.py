"""The layers that keep less: each is its plain class with another ``forward``, so weights and names stay where they are."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.compression.method import Compressed, Method
from fedact.compression.operations import Convolution, MatrixProduct, Operation


class _WithKeptInput(torch.autograd.Function):
    """y = operation(x, weight, bias) that keeps x as the method says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, method: Method, operation: Operation) -> Tensor:
        compressed = method.compress(x)
        ctx.save_for_backward(weight, *compressed.tensors)
        ctx.about, ctx.shape, ctx.method, ctx.operation = compressed.about, x.shape, method, operation
        return operation.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, *tensors = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        method, operation = ctx.method, ctx.operation
        compressed = Compressed(tuple(tensors), ctx.about)
        grad_weight = method.weight_gradient(compressed, grad_output, weight, operation) if needs_weight else None
        grad_bias = operation.bias_gradient(grad_output) if needs_bias else None
        grad_input = method.input_gradient(ctx.shape, grad_output, weight, operation) if needs_input else None
        return grad_input, grad_weight, grad_bias, None, None


class CompressedConv2d(nn.Conv2d):
    """A convolution that keeps its input through a method."""

    plain = nn.Conv2d
    method: Method

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        batched = x if x.dim() == 4 else x.unsqueeze(0)
        y = _WithKeptInput.apply(batched, self.weight, self.bias, self.method, Convolution.of(self))
        return y if x.dim() == 4 else y.squeeze(0)  # type: ignore[no-any-return]


class CompressedLinear(nn.Linear):
    """A linear layer that keeps its input through a method."""

    plain = nn.Linear
    method: Method

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        return _WithKeptInput.apply(x, self.weight, self.bias, self.method, MatrixProduct())  # type: ignore[no-any-return]


class _FrozenNorm(torch.autograd.Function):
    """Batch norm with fixed statistics, scale and shift: an affine map, whose gradient needs no activation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(variance, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        variance, weight = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        scale = scale if weight is None else scale * weight
        return grad_output * scale.to(grad_output.dtype)[:, None, None], None, None, None, None, None


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its running statistics in training too, and leaves the rest to autograd."""

    plain = nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)


class FrozenBatchNorm2d(EvalBatchNorm2d):
    """Batch norm that uses its running statistics and keeps nothing (while its scale and shift are frozen)."""

    def forward(self, x: Tensor) -> Tensor:
        trained = self.weight is not None and (self.weight.requires_grad or self.bias.requires_grad)
        if trained or not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _FrozenNorm.apply(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)  # type: ignore[no-any-return]


class _MaskedReLU(torch.autograd.Function):
    """clamp(x, 0, upper) that keeps one bit an element: whether the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, upper: float | None, inplace: bool) -> Tensor:
        # Negated, so that a NaN lets its gradient pass, as in PyTorch.
        stops = x <= 0 if upper is None else (x <= 0) | (x >= upper)
        ctx.save_for_backward(pack_bits(stops))
        if inplace:
            ctx.mark_dirty(x)
        if upper is None:
            return F.relu(x, inplace=inplace)
        return F.hardtanh(x, 0.0, upper, inplace=inplace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (stops,) = ctx.saved_tensors
        return grad_output.masked_fill(unpack_bits(stops, grad_output.shape), 0), None, None


class MaskedReLU(nn.ReLU):
    """ReLU that keeps one bit an element."""

    plain = nn.ReLU

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _MaskedReLU.apply(x, None, self.inplace)  # type: ignore[no-any-return]


class MaskedReLU6(nn.ReLU6):
    """ReLU6 that keeps one bit an element."""

    plain = nn.ReLU6

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _MaskedReLU.apply(x, self.max_val, self.inplace)  # type: ignore[no-any-return]


class NoDropout(nn.Dropout):
    """Dropout that is off in training too."""

    plain = nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        return x


def pack_bits(bits: Tensor) -> UInt8[Tensor, " bytes"]:
    """Return booleans as bits, eight a byte, the last byte padded with zeros."""
    columns = F.pad(bits.flatten(), (0, -bits.numel() % 8)).view(torch.uint8).view(-1, 8)
    packed = columns[:, 0].clone()
    for place in range(1, 8):
        packed |= columns[:, place] << place
    return packed


def unpack_bits(packed: UInt8[Tensor, " bytes"], shape: Sequence[int]) -> Tensor:
    """Return the booleans behind ``pack_bits``, in the given shape."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = ((packed[:, None] >> places) & 1).view(torch.bool)
    return bits.flatten()[: torch.Size(shape).numel()].view(torch.Size(shape))


KEEPING: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: CompressedConv2d, nn.Linear: CompressedLinear}
"""Trained layers that keep their input through a method."""

LEAN: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.ReLU: MaskedReLU,
    nn.ReLU6: MaskedReLU6,
    nn.Dropout: NoDropout,
}
"""Layers around them that can keep less at no cost to the gradient."""

PLAIN: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: EvalBatchNorm2d, nn.Dropout: NoDropout}
"""What every method shares, vanilla too: batch norm in eval mode, dropout off."""
