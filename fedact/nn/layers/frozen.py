"""Frozen layers: convolutions that save no activation, and batch norms in eval mode, which save none either."""

from functools import cache
from math import inf
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.compression.operations import Normalization, Operation
from fedact.compression.temporal import convolution_of
from fedact.nn.layers.base import FixedStatistics, Saving, Slope, Swapped, made_class, noted
from fedact.nn.layers.bitmask import apply_mask, pack_mask
from fedact.nn.layers.compressed import autocast_type, in_type
from fedact.nn.layers.function import apply, as_output, is_recorded, runs_plain, without_autocast
from fedact.torch_private import NormWithStatistics, native_batch_norm_into


class _FrozenConvolution(torch.autograd.Function):
    """A convolution with a frozen weight, whose gradients need no activation; autograd would save the input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.operation, ctx.dtype = x.shape, operation, x.dtype
        ctx.bias_type = None if bias is None else bias.dtype
        with without_autocast(x):
            return as_output(operation.forward(*in_type(dtype, x, weight, bias)))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, grad_input, grad_bias = ctx.saved_tensors[0].to(grad_output.dtype), None, None
        with without_autocast(grad_output):
            if ctx.needs_input_grad[2]:
                grad_bias = ctx.operation.bias_gradient(grad_output).to(ctx.bias_type)
            if ctx.needs_input_grad[0]:
                grad_input = ctx.operation.input_gradient(ctx.shape, grad_output, weight).to(ctx.dtype)
        return grad_input, None, grad_bias, None, None


class FrozenConvolution(Saving, nn.Module):
    """A convolution that saves no activation (while its weight is frozen); ``dimensions``: of a batch."""

    dimensions: ClassVar[int]
    weight: Tensor
    bias: Tensor | None

    @noted
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < self.dimensions or not is_recorded(x, self.bias) or runs_plain():
            return super().forward(x)  # type: ignore[no-any-return]
        # Once, for a parametrized weight is computed at every reading.
        weight, bias, operation = self.weight, self.bias, convolution_of(self)
        if is_recorded(weight):
            return operation.forward(x, weight, bias)
        return apply(_FrozenConvolution, x, weight, bias, operation, autocast_type(x))  # type: ignore[no-any-return]


class FrozenConv1d(FrozenConvolution, nn.Conv1d):
    """``FrozenConvolution`` of series."""

    plain: ClassVar[type[nn.Module]] = nn.Conv1d
    dimensions: ClassVar[int] = 3


class FrozenConv2d(FrozenConvolution, nn.Conv2d):
    """``FrozenConvolution`` of pictures."""

    plain: ClassVar[type[nn.Module]] = nn.Conv2d
    dimensions: ClassVar[int] = 4


def normalized(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, overwrites: bool
) -> Tensor:
    """Return the norm of x by fixed statistics, written over x where ``overwrites``: the same bits. Records nothing."""
    if not overwrites:
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
    none = mean.new_empty(0)
    native_batch_norm_into(x, weight, bias, mean, variance, False, 0.0, eps, out=(x, none, none))
    return x


def may_be_overwritten(x: Tensor, mean: Tensor | None) -> bool:
    """Tell whether the output of a norm with this mean may be written over its input, where nothing else reads that."""
    return isinstance(mean, Tensor) and x.dtype == mean.dtype and x.is_cpu and not x._is_view()


class _FrozenNorm(torch.autograd.Function):
    """Batch norm with fixed statistics, scale and shift: an affine map, whose gradient needs no activation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        overwrites: bool,
    ) -> Tensor:
        ctx.save_for_backward(mean, variance, weight)
        ctx.eps = eps
        if overwrites:
            ctx.mark_dirty(x)
        return normalized(x, mean, variance, weight, bias, eps, overwrites)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        mean, variance, weight = ctx.saved_tensors
        operation = Normalization(mean, variance, ctx.eps)
        grad_bias = operation.bias_gradient(grad_output).to(mean.dtype) if ctx.needs_input_grad[4] else None
        grad_input = operation.input_gradient(grad_output.shape, grad_output, weight) if ctx.needs_input_grad[0] else None
        return grad_input, None, None, None, grad_bias, None, None


class _FrozenNormActivation(torch.autograd.Function):
    """``_FrozenNorm`` and a piecewise linear activation of slope 1 of its output, the only reader of it.

    Saves the activation's mask, one bit an element. The bits of output and gradient are those of the two functions.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        slope: Slope,
        overwrites: bool,
    ) -> Tensor:
        if overwrites:
            ctx.mark_dirty(x)
        y = normalized(x, mean, variance, weight, bias, eps, overwrites)
        ctx.order, ctx.eps = memory_order(y), eps

        def activate(part: Tensor) -> Tensor:
            """Return the mask of a part of y, and write the activation into the part while it is in the cache."""
            passes = slope.passes(part)
            _ = torch.relu_(part) if slope.upper == inf else F.hardtanh_(part, slope.lower, slope.upper)
            return passes

        ctx.save_for_backward(pack_mask(y, ctx.order, activate), mean, variance, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        packed, mean, variance, weight = ctx.saved_tensors
        norm = Normalization(mean, variance, ctx.eps)
        if torch.is_grad_enabled():
            passes = apply_mask(torch.ones_like(grad_output), packed, ctx.order).bool()
            return torch.where(passes, grad_output * norm.scale(grad_output, weight), 0), *[None] * 7
        scale = norm.scale(grad_output, weight)
        if ctx.order[-1] == 1:
            grad_input = apply_mask(grad_output, packed, ctx.order, scale.flatten())
        else:
            grad_input = apply_mask(grad_output, packed, ctx.order).mul_(scale)
        return grad_input, *[None] * 7


class EvalNorm(FixedStatistics, Swapped, NormWithStatistics):
    """Batch norm that uses its running statistics in training too; autograd saves what it needs."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)


class FrozenNorm(Saving, EvalNorm):
    """Batch norm that uses its running statistics, and saves no activation (while its scale and shift are frozen)."""

    @noted
    def forward(self, x: Tensor, overwrites: bool = False) -> Tensor:
        """Return the norm of x; overwrites: written over x, which nothing else reads (see ``FusedSequential``)."""
        if is_recorded(self.weight) or runs_plain():
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        settings = self.running_mean, self.running_var, self.weight, self.bias, self.eps
        overwrites = overwrites and may_be_overwritten(x, settings[0])
        if is_recorded(x, self.bias):
            return apply(_FrozenNorm, x, *settings, overwrites)  # type: ignore[no-any-return]
        return normalized(x, *settings, overwrites)  # type: ignore[arg-type]

    def activated(self, x: Tensor, slope: Slope, overwrites: bool) -> Tensor:
        """Return the activation with this slope of the norm of x, as one operation (see ``FusedSequential``)."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        settings = self.running_mean, self.running_var, self.weight, self.bias, self.eps
        overwrites = overwrites and may_be_overwritten(x, settings[0])
        return apply(_FrozenNormActivation, x, *settings, slope, overwrites)  # type: ignore[no-any-return]


@cache
def eval_class(plain: Any) -> Any:
    """Return the subclass of a batch norm that is always in eval mode."""
    return made_class(eval_class, plain, f"Eval{plain.__name__}", (EvalNorm, plain), plain=plain)


@cache
def frozen_class(plain: Any) -> Any:
    """Return the subclass of a batch norm that is always in eval mode, and saves no activation while it is frozen."""
    return made_class(frozen_class, plain, f"Frozen{plain.__name__}", (FrozenNorm, plain), plain=plain)
