"""Trained layers that save their input compressed by a method."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedact.compression import METHODS
from fedact.compression.accumulation import add_weight_gradient, is_large
from fedact.compression.channels_last import has_own_gradient
from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.method import Compressed, Method, State
from fedact.compression.operations import Operation
from fedact.compression.plane import is_product
from fedact.compression.temporal import convolution_of
from fedact.config.errors import ConfigError
from fedact.nn.layers.accumulation import parameter_gradient, release
from fedact.nn.layers.base import Saving, noted
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.function import (
    apply,
    as_output,
    check_first_derivative,
    check_no_transform,
    is_recorded,
    is_traced,
    runs_plain,
    without_autocast,
)

WEIGHT = 1
"""The weight's place among the tensors of an operation: input, weight and bias."""


class CodecLayer(Saving, nn.Module):
    """A layer that saves its input through a codec; the ledger asks it for state and stored elements."""

    codec: LayerCodec

    @property
    def method(self) -> Method:
        """The method that compresses its input."""
        return self.codec.method

    def compresses(self, x: Tensor, weight: Tensor | None) -> bool:
        """Tell whether to save the input x compressed: for the gradient of the weight, or of x where there is no weight.

        Raises ConfigError where a method with loss cannot, and the plain layer's gradient would be another.
        """
        if not is_recorded(x if weight is None else weight):
            return False
        if runs_plain():
            if not self.method.traits.keeps_input:
                check_no_transform(self.method)
            return False
        return True

    def _replicate_for_data_parallel(self) -> Any:
        """Refuse ``nn.DataParallel``, whose copies would run at once, all with one codec."""
        raise ConfigError(
            "nn.DataParallel cannot copy memory-saving layers: take DistributedDataParallel, or fedact.restore(model)"
        )

    def state_tensors(self) -> list[Tensor]:
        """Return the tensors that the method keeps between steps."""
        return self.codec.state_tensors()

    def stored_elements(self, tensor: Tensor) -> int:
        """Return the number of elements that a saved tensor stores, for the papers' memory figure."""
        return self.codec.stored_elements(tensor)


def save(ctx: Any, method: Any, compressed: Compressed, *others: Tensor) -> None:
    """Save a compressed input, and other tensors, for the backward pass of an autograd function."""
    state = compressed.state.tensors if method.traits.reads_state else ()
    ctx.save_for_backward(*others, *compressed.tensors, *state)
    ctx.places = len(others), len(others) + len(compressed.tensors)
    ctx.layout = compressed.metadata, compressed.state.metadata


def saved(ctx: Any) -> tuple[Compressed, tuple[Tensor, ...]]:
    """Return what ``save`` saved: the compressed input, and the other tensors."""
    first, last = ctx.places
    tensors, (metadata, state) = ctx.saved_tensors, ctx.layout
    return Compressed(tensors[first:last], metadata, State(tensors[last:], state)), tensors[:first]


def keeps_graph(ctx: Any, x: Tensor, codec: LayerCodec, compressed: Compressed) -> bool:
    """Tell whether the first input x of an autograd function is saved as it is, or leads to no other tensor."""
    return codec.method.traits.keeps_input and (not ctx.needs_input_grad[0] or compressed.tensors[0] is x)


class _CompressedInput(torch.autograd.Function):
    """y = operation(x, weight, bias), saving x compressed by the method; computed in autocast's ``dtype`` unless None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        codec: LayerCodec,
        operation: Operation,
        dtype: torch.dtype | None,
    ) -> Tensor:
        ctx.types, given = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias)], x
        x, cast_weight, cast_bias = in_type(dtype, x, weight, bias)
        with without_autocast(x):
            ctx.method, compressed, ctx.handover = codec.encode(x, given)
            # The weight itself: its cast copy can be computed again.
            save(ctx, ctx.method, compressed, weight)
            ctx.keeps_graph = keeps_graph(ctx, given, codec, compressed)
            ctx.shape, ctx.operation, ctx.dtype = x.shape, operation, dtype
            return as_output(operation.forward(x, cast_weight, cast_bias))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method, ctx.keeps_graph)
        compressed, (weight,) = saved(ctx)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        operation, handover = ctx.operation, None if torch.is_grad_enabled() or not needs_input else ctx.handover
        with without_autocast(grad_output):
            weight = weight if ctx.dtype is None else weight.to(ctx.dtype)
            grad_bias = operation.bias_gradient(grad_output) if needs_bias else None
            # The weight's gradient first: then the input can be freed.
            x = None if handover is None else ctx.method.reconstruct(compressed)
            grad_weight = _weight_gradient(ctx, compressed, x, grad_output, weight) if needs_weight else None
            del compressed
            if needs_input:
                release(ctx)
            grad_input = ctx.method.input_gradient(ctx.shape, grad_output, weight, operation) if needs_input else None
            grad_input = None if grad_input is None else grad_input.to(ctx.types[0])
            if handover is not None and grad_input is not None and x is not None:
                # One reconstruction serves the weight and the mask of the activation before.
                handover.give(grad_input, handover.slope.times(grad_input, x))
        gradients = (grad_input, grad_weight, grad_bias)
        return *(g if g is None else g.to(t) for g, t in zip(gradients, ctx.types, strict=True)), None, None, None


def _weight_gradient(
    ctx: Any, compressed: Compressed, x: Tensor | None, grad_output: Tensor, weight: Tensor
) -> Tensor | None:
    """Return the weight's gradient, or add it to what the weight has, and return None; x: the input where it is there."""
    method, operation = ctx.method, ctx.operation
    large = ctx.dtype is None and is_large(weight, ctx.shape, grad_output)
    total = parameter_gradient(ctx, WEIGHT) if large else None
    if total is not None and total.is_first and has_own_gradient(method) and not is_product(operation, weight):
        # Such methods make a kernel's as a new tensor, and autograd takes the first one as it is.
        total = None
    if x is None and type(method) not in METHODS.values() and isinstance(method, Method) and not has_own_gradient(method):
        x = _checked(method.reconstruct(compressed), method, ctx.shape)
    if total is None:
        if x is None:
            return method.weight_gradient(compressed, grad_output, weight, operation)  # type: ignore[no-any-return]
        return operation.weight_gradient(x, grad_output, weight)  # type: ignore[no-any-return]
    if x is None:
        method.add_weight_gradient(total, compressed, grad_output, weight, operation)
    else:
        add_weight_gradient(total, operation, x, grad_output, weight)
    return None


def _checked(x: Tensor, method: Method, shape: torch.Size) -> Tensor:
    """Return what a method of the user's own reconstructed; raises ConfigError where it is no stand-in for the input."""
    if x.shape != shape:
        raise ConfigError(f"{type(method).__name__} reconstructs {tuple(x.shape)} where the input was {tuple(shape)}")
    return x


def in_type(
    dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return x, weight and bias cast to ``dtype``, unchanged for None."""
    if dtype is None:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes a convolution or matrix product of x in, None where it casts nothing."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64 else None


def input_compressed(
    x: Tensor, weight: Tensor, bias: Tensor | None, codec: LayerCodec, operation: Operation, casts: bool = True
) -> Tensor:
    """Return an operation's output for x, which the codec saves; casts: whether autocast may choose another type."""
    dtype = autocast_type(x) if casts else None
    return apply(_CompressedInput, x, weight, bias, codec, operation, dtype)  # type: ignore[no-any-return]


class CompressedConvolution(CodecLayer):
    """A convolution that saves its input compressed; ``dimensions``: of a batch."""

    dimensions: ClassVar[int]
    weight: Tensor
    bias: Tensor | None

    @noted
    def forward(self, x: Tensor) -> Tensor:
        if is_traced():
            return super().forward(x)  # type: ignore[no-any-return]
        # Once, for a parametrized weight is computed at every reading.
        weight, bias, operation = self.weight, self.bias, convolution_of(self)
        if not self.compresses(x, weight):
            return operation.forward(x, weight, bias)
        batched = x if x.dim() == self.dimensions else x.unsqueeze(0)
        y: Tensor = apply(_CompressedInput, batched, weight, bias, self.codec, operation, autocast_type(x))
        return y if x.dim() == self.dimensions else y.squeeze(0)


class CompressedConv1d(CompressedConvolution, nn.Conv1d):
    """A convolution of series that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.Conv1d
    dimensions: ClassVar[int] = 3


class CompressedConv2d(CompressedConvolution, nn.Conv2d):
    """A convolution of pictures that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.Conv2d
    dimensions: ClassVar[int] = 4


class CompressedLinear(CodecLayer, nn.Linear):
    """A linear layer that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, operation = self.weight, self.bias, MatrixProduct()
        if not self.compresses(x, weight):
            return operation.forward(x, weight, bias)
        y: Tensor = apply(_CompressedInput, x, weight, bias, self.codec, operation, autocast_type(x))
        return y
