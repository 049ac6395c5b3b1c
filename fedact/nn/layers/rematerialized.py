"""Rematerialized inputs: not saved, but computed again, where the backward pass needs them, from a saved one."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedact.compression.method import Compressed, Method
from fedact.compression.operations import Operation
from fedact.nn.layers.compressed import CodecLayer, LayerCodec
from fedact.nn.layers.frozen import FrozenConv2d


class Rematerialization:
    """Stand-in for a Method where the input is rematerialized: decode the source tensor, run the layers between.

    All tensors on the way are this operation's working memory and gone when it returns.
    """

    def __init__(self, method: Method, chain: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.method, self.chain, self.dtype = method, chain, dtype
        self.traits = method.traits

    def reconstruct(self, compressed: Compressed) -> Tensor:
        """Return the input as the layers between make it."""
        x = self.method.reconstruct(compressed)
        with torch.no_grad():
            for module in self.chain:
                # In the weights' type, whatever autocast chose.
                x = next((x.to(weight.dtype) for weight in module.parameters()), x)
                # Not by a call: no hook is meant for this.
                x = type(module).forward(module, x)
        return x.to(self.dtype)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's weight."""
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's input, which needs no activation."""
        return operation.input_gradient(shape, grad_output, weight)


class RematerializedCodec(LayerCodec):
    """The codec of a layer whose input is rematerialized from what another codec saved; it saves nothing itself.

    counts: whether the papers' figure counts the other's tensors here, because the other layer is not trained.
    """

    def __init__(self, origin: LayerCodec, chain: Sequence[nn.Module], counts: bool) -> None:
        super().__init__(origin.method, origin.seed)
        self.origin, self.chain, self.counts = origin, chain, counts
        origin.takers += 1

    def keep(self, x: Tensor) -> tuple[Rematerialization, Compressed]:
        method, compressed = self.origin.hand_on()
        return Rematerialization(method, self.chain, x.dtype), compressed

    def stored_elements(self, tensor: Tensor) -> int:
        return self.method.stored_elements(tensor) if self.counts else 0


class SourceConv2d(CodecLayer, FrozenConv2d):
    """A frozen convolution that saves its input for trained layers after it, whose own inputs are larger."""

    plain: ClassVar[type[nn.Module]] = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.codec.keep((x if x.dim() == 4 else x.unsqueeze(0)).detach())
        return super().forward(x)
