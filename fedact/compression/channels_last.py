"""A method for inputs whose channels are last: it sees them second, as every method sees every tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedact.compression.accumulation import Total
from fedact.compression.matrix_product import MatrixProduct, channels_last, channels_second
from fedact.compression.method import NO_STATE, Codec, Compressed, Method, State, Traits
from fedact.compression.operations import Operation


@dataclass(frozen=True)
class ChannelsLast(Codec):
    """Hands a method views of a linear layer's tensors (batch, *positions, channels), with the channels second."""

    method: Method

    @property
    def traits(self) -> Traits:
        """The method's."""
        return self.method.traits

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return self.method.compress(channels_second(x), state)

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return channels_last(self.method.reconstruct(compressed))

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return self.method.predicted_bytes(_seen(x))

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        return self.method.predicted_state_bytes(_seen(x))

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        return self.method.weight_gradient(compressed, channels_second(grad_output), weight, seen(operation))

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        self.method.add_weight_gradient(total, compressed, channels_second(grad_output), weight, seen(operation))

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        gradient = self.method.input_gradient(_seen_shape(shape), channels_second(grad_output), weight, seen(operation))
        return channels_last(gradient)


Coder = Method | ChannelsLast
"""What compresses a layer's input."""


def has_own_gradient(codec: Any) -> bool:
    """Tell whether a codec takes the weight gradient in another way than from the reconstruction."""
    method = codec.method if isinstance(codec, ChannelsLast) else codec
    return type(method).weight_gradient is not Codec.weight_gradient


def seen(operation: Operation) -> Operation:
    """Return the operation on tensors whose channels are second."""
    return replace(operation, channels=1) if isinstance(operation, MatrixProduct) else operation


def _seen(x: Tensor | Sequence[int]) -> Tensor | Sequence[int]:
    return channels_second(x) if isinstance(x, Tensor) else _seen_shape(x)


def _seen_shape(shape: Sequence[int]) -> Sequence[int]:
    return (shape[0], shape[-1], *shape[1:-1]) if len(shape) > 2 else shape
