"""Trained layers that keep their input through a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.compression.exact import Exact
from fedact.compression.method import Compressed, Method, State
from fedact.compression.operations import Convolution, MatrixProduct, Normalization, Operation
from fedact.nn.layers.base import Swapped

if TYPE_CHECKING:
    from fedact.nn.layers.base import Slope


class LayerCodec:
    """A layer's method, with its state for every size of input that the layer has seen.

    takers: number of other layers whose inputs are rematerialized from what is saved here. deferred: the slope of the
    activation before, where this layer applies its mask.
    """

    def __init__(self, method: Method, seed: int) -> None:
        self.method = method
        self.seed = seed
        self.states: dict[tuple[torch.Size, torch.dtype, torch.device], State] = {}
        self.takers = 0
        self.deferred: Slope | None = None
        self._to_hand_on: list[tuple[Method, Compressed]] = []

    def renew(self, seed: int) -> None:
        """Forget all states: another client begins."""
        self.seed, self._to_hand_on = seed, []
        self.states.clear()

    def keep(self, x: Tensor) -> tuple[Any, Compressed]:
        """Return what is kept of x, with the method that kept it, and remember the state."""
        method = self.method.for_dimensions(x.dim()) if x.numel() else Exact()
        # An example's size, not the batch's: the last batch of an epoch is smaller.
        size = (x.shape[1:], x.dtype, x.device)
        compressed = method.compress(x, self.states.get(size) or method.start(self.seed))
        if compressed.state.tensors:
            self.states[size] = compressed.state
        self._to_hand_on = [(method, compressed)] * self.takers
        return method, compressed

    def hand_on(self) -> tuple[Method, Compressed]:
        """Return what was kept in this forward pass, once to every taker; the last one leaves nothing here.

        Raises RuntimeError where the layer that keeps it has not run.
        """
        if not self._to_hand_on:
            raise RuntimeError(
                "a layer's input is made again from another layer's, which has not run: take derive=0 for parts"
            )
        return self._to_hand_on.pop()

    def stored_elements(self, tensor: Tensor) -> int:
        """Return how many elements a kept tensor stands for."""
        return self.method.stored_elements(tensor)

    def load(self, size: tuple[int, ...], tensors: tuple[Tensor, ...]) -> None:
        """Start inputs of this size (an example's, in the tensors' type) from a state found elsewhere."""
        self.states[torch.Size(size), tensors[0].dtype, tensors[0].device] = State(tensors)

    def state_tensors(self) -> list[Tensor]:
        """Return what is kept between steps."""
        return [tensor for state in self.states.values() for tensor in state.tensors]


class CodecLayer(Swapped, nn.Module):
    """A layer that saves its input through a codec; the ledger asks it for state and stored elements."""

    codec: LayerCodec

    @property
    def method(self) -> Method:
        """The method that its input is kept through."""
        return self.codec.method

    def state_tensors(self) -> list[Tensor]:
        """Return what the method keeps between steps."""
        return self.codec.state_tensors()

    def stored_elements(self, tensor: Tensor) -> int:
        """Return how many elements a kept tensor stands for."""
        return self.codec.stored_elements(tensor)


def save(ctx: Any, method: Any, compressed: Compressed, *others: Tensor) -> None:
    """Save what is kept, and other tensors, for the backward pass of an autograd function."""
    state = compressed.state.tensors if method.traits.reads_state else ()
    ctx.save_for_backward(*others, *compressed.tensors, *state)
    ctx.places = len(others), len(others) + len(compressed.tensors)
    ctx.layout = compressed.metadata, compressed.state.metadata


def saved(ctx: Any) -> tuple[Compressed, tuple[Tensor, ...]]:
    """Return what ``save`` saved: what is kept, and the others."""
    first, last = ctx.places
    tensors, (metadata, state) = ctx.saved_tensors, ctx.layout
    return Compressed(tensors[first:last], metadata, State(tensors[last:], state)), tensors[:first]


class _WithKeptInput(torch.autograd.Function):
    """y = operation(x, weight, bias) that keeps x as the method says; computed in ``dtype`` where autocast asks for one."""

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
        ctx.types = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias)]
        x, cast_weight, cast_bias = in_type(dtype, x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            ctx.method, compressed = codec.keep(x)
            # The weight as it is: what autocast made of it need not be kept, it can be made again.
            save(ctx, ctx.method, compressed, weight)
            ctx.shape, ctx.operation, ctx.dtype, ctx.deferred = x.shape, operation, dtype, codec.deferred
            return operation.forward(x, cast_weight, cast_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        compressed, (weight,) = saved(ctx)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        method, operation = ctx.method, ctx.operation
        with torch.autocast(grad_output.device.type, enabled=False):
            weight = weight if ctx.dtype is None else weight.to(ctx.dtype)
            grad_bias = operation.bias_gradient(grad_output) if needs_bias else None
            grad_input = method.input_gradient(ctx.shape, grad_output, weight, operation) if needs_input else None
            if ctx.deferred is not None and needs_input:
                # One reconstruction serves the weight and the deferred mask of the activation before.
                x = method.reconstruct(compressed)
                grad_weight = operation.weight_gradient(x, grad_output, weight) if needs_weight else None
                grad_input = ctx.deferred.times(grad_input, x)
            else:
                grad_weight = method.weight_gradient(compressed, grad_output, weight, operation) if needs_weight else None
        gradients = (grad_input, grad_weight, grad_bias)
        return *(g if g is None else g.to(t) for g, t in zip(gradients, ctx.types, strict=True)), None, None, None


def in_type(
    dtype: torch.dtype | None, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the three in the type that autocast asks for, as they are where it asks for none."""
    if dtype is None:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast runs a convolution or a matrix product of x in, None where it leaves x alone."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64 else None


class CompressedConv2d(CodecLayer, nn.Conv2d):
    """A convolution that keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        batched = x if x.dim() == 4 else x.unsqueeze(0)
        operation, dtype = Convolution.of(self), autocast_type(x)
        y: Tensor = _WithKeptInput.apply(batched, self.weight, self.bias, self.codec, operation, dtype)
        return y if x.dim() == 4 else y.squeeze(0)


class CompressedLinear(CodecLayer, nn.Linear):
    """A linear layer that keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        y: Tensor = _WithKeptInput.apply(x, self.weight, self.bias, self.codec, MatrixProduct(), autocast_type(x))
        return y


class CompressedBatchNorm2d(CodecLayer, nn.BatchNorm2d):
    """Batch norm that uses its running statistics, trains its scale and shift, and keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        operation = Normalization(self.running_mean, self.running_var, self.eps)
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return operation.forward(x, self.weight, self.bias)
        y: Tensor = _WithKeptInput.apply(x, self.weight, self.bias, self.codec, operation, None)
        return y
