"""Layers with a low-rank update, y = W x + b + scale B (A x): W is frozen, B trained, and A trained or frozen."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.method import Codec
from fedact.compression.operations import Convolution, Operation
from fedact.compression.temporal import Convolution1d, convolution_of
from fedact.nn.layers.base import Saving, Swapped, made_class, noted
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import CodecLayer, autocast_type, in_type, save, saved
from fedact.nn.layers.function import (
    apply,
    as_output,
    check_first_derivative,
    is_recorded,
    is_traced,
    runs_plain,
    without_autocast,
)
from fedact.nn.layers.parts import factors, part_of

POINTWISE = Convolution((1, 1), (0, 0), (1, 1), 1)


class _LowRankUpdate(torch.autograd.Function):
    """y = operation(x, weight, bias) + scale mix(operation(x, down), up), of which up, and maybe down, are trained.

    Saves operation(x, down), of few channels, and where down is trained (codec is not None) x compressed by the method.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        codec: LayerCodec | None,
        operation: Operation,
        scale: float,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.types, given = [x.dtype, down.dtype, up.dtype], x
        ctx.operation, ctx.mix, ctx.scale, ctx.shape, ctx.dtype = operation, mix_of(operation), scale, x.shape, dtype
        x, cast_weight, cast_bias = in_type(dtype, x, weight, bias)
        cast_down, cast_up, _ = in_type(dtype, down, up, None)
        with without_autocast(x):
            few = operation.forward(x, cast_down, None)
            if codec is None:
                ctx.method = None
                ctx.save_for_backward(weight, down, up, few)
            else:
                ctx.method, compressed, _ = codec.encode(x, given)
                save(ctx, ctx.method, compressed, weight, down, up, few)
            y = as_output(operation.forward(x, cast_weight, cast_bias))
            return y.add_(ctx.mix.forward(few, cast_up, None), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method or "lora", False)
        compressed, tensors = (None, ctx.saved_tensors) if ctx.method is None else saved(ctx)
        weight, down, up, few = (each if ctx.dtype is None else each.to(ctx.dtype) for each in tensors)
        operation, mix, needs = ctx.operation, ctx.mix, ctx.needs_input_grad
        with without_autocast(grad_output):
            grad_up = mix.weight_gradient(few, grad_output, up).mul_(ctx.scale) if needs[4] else None
            grad_few = mix.input_gradient(few.shape, grad_output, up) * ctx.scale
            grad_down = None if compressed is None else ctx.method.weight_gradient(compressed, grad_few, down, operation)
            del compressed, few
            grad_input = None
            if needs[0]:
                input_gradient = operation.input_gradient if ctx.method is None else _of_method(ctx.method, operation)
                grad_input = input_gradient(ctx.shape, grad_output, weight) + input_gradient(ctx.shape, grad_few, down)
        found = (grad_input, grad_down, grad_up)
        grad_input, grad_down, grad_up = (g if g is None else g.to(t) for g, t in zip(found, ctx.types, strict=True))
        return grad_input, None, None, grad_down, grad_up, None, None, None, None


def _of_method(method: Codec, operation: Operation) -> Any:
    return lambda shape, grad_output, weight: method.input_gradient(shape, grad_output, weight, operation)


def operation_of(module: nn.Module) -> Operation:
    """Return the operation of a convolution or a linear layer."""
    return MatrixProduct() if isinstance(module, nn.Linear) else convolution_of(module)


def mix_of(operation: Operation) -> Operation:
    """Return the operation that mixes the channels of another one's output, position by position."""
    if isinstance(operation, MatrixProduct):
        return operation
    return POINTWISE if isinstance(operation, Convolution) else Convolution1d(POINTWISE)


def plainly_updated(module: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's output with its low-rank update, in plain PyTorch."""
    down, up = factors(module)
    part = part_of(module)
    assert part is not None
    assert part.scale is not None
    if isinstance(module, nn.Linear):
        return F.linear(x, module.weight, module.bias) + part.scale * F.linear(F.linear(x, down), up)
    mix: Any = F.conv2d if isinstance(module, nn.Conv2d) else F.conv1d
    forward: Any = module._conv_forward
    return forward(x, module.weight, module.bias) + part.scale * mix(forward(x, down, None), up)  # type: ignore[no-any-return]


class LowRankLayer(Swapped):
    """A layer with a low-rank update, in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return plainly_updated(self, x)  # type: ignore[arg-type]


class _Lean:
    """A layer with a low-rank update that saves what its gradient needs; ``codec``: of its input, where A is trained."""

    def forward(self, x: Tensor) -> Tensor:
        codec: LayerCodec | None = vars(self).get("codec")
        module: Any = self
        (down, up), dimensions = factors(module), 3 if isinstance(module, nn.Conv1d) else 4
        single = not isinstance(module, nn.Linear) and x.dim() < dimensions
        if single or is_traced() or runs_plain() or not is_recorded(x, down, up) or is_recorded(module.weight, module.bias):
            return plainly_updated(module, x)
        part = part_of(module)
        assert part is not None
        return apply(  # type: ignore[no-any-return]
            _LowRankUpdate,
            x,
            module.weight,
            module.bias,
            down,
            up,
            codec,
            operation_of(module),
            part.scale,
            autocast_type(x),
        )


@cache
def plain_low_rank(plain: Any) -> Any:
    """Return the subclass of a layer with a low-rank update in plain PyTorch."""
    return made_class(plain_low_rank, plain, f"LowRank{plain.__name__}", (LowRankLayer, plain), plain=plain)


@cache
def kept_low_rank(plain: Any) -> Any:
    """Return the subclass of a layer with a low-rank update that saves its input by a method."""
    members = {"plain": plain, "forward": noted(_Lean.forward)}
    return made_class(kept_low_rank, plain, f"CompressedLowRank{plain.__name__}", (_Lean, CodecLayer, plain), **members)


@cache
def light_low_rank(plain: Any) -> Any:
    """Return the subclass of a layer with a low-rank update of which B alone is trained: it saves A times its input."""
    members = {"plain": plain, "forward": noted(_Lean.forward)}
    return made_class(light_low_rank, plain, f"LightLowRank{plain.__name__}", (_Lean, Saving, plain), **members)
