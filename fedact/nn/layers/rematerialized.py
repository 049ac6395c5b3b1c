"""Layers with rematerialized inputs: not saved, but recomputed in the backward pass from another layer's saved input."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedact.compression.accumulation import Total, add_weight_gradient
from fedact.compression.channels_last import Coder
from fedact.compression.method import Compressed
from fedact.compression.operations import Operation
from fedact.compression.temporal import convolution_of
from fedact.nn.layers.base import CONVOLUTIONS
from fedact.nn.layers.codec import Encoded, LayerCodec
from fedact.nn.layers.compressed import CodecLayer
from fedact.nn.layers.frozen import FrozenConv1d, FrozenConv2d, FrozenConvolution, FrozenNorm
from fedact.nn.layers.function import eagerly, runs_plain
from fedact.nn.layers.provenance import Chain, Handover, Link, weight_marks


def check_unchanged(link: Link) -> None:
    """Raise RuntimeError where a module's weights were changed since the forward pass, as autograd does."""
    if weight_marks(link.module) != link.weights:
        raise RuntimeError(
            f"the weights of a {type(link.module).__name__} were changed between a forward and its backward pass, "
            "which computes another layer's input with them again: change them later, or recompute nothing"
        )


class Rematerialization:
    """Stand-in for a Method where the input is rematerialized: decode the source tensor, run the layers between.

    Intermediate tensors are freed when a gradient is returned.
    """

    def __init__(self, method: Coder, chain: Chain, dtype: torch.dtype) -> None:
        self.method, self.chain, self.dtype = method, chain, dtype
        self.traits = method.traits

    def reconstruct(self, compressed: Compressed) -> Tensor:
        """Return the input, recomputed from the compressed source tensor through the layers between.

        Raises RuntimeError where a layer's weights were changed since the forward pass, as autograd does for what it saves.
        """
        x: Tensor | None = None
        alone = False
        with torch.no_grad():
            for link in self.chain:
                check_unchanged(link)
                module = link.module
                if x is None and isinstance(module, CONVOLUTIONS):
                    # Some methods need not decode for it.
                    x, alone = self.method.output(compressed, module.weight, module.bias, convolution_of(module)), True
                    continue
                if x is None:
                    x = self.method.reconstruct(compressed)
                    x = x.clone() if getattr(module, "inplace", False) else x
                # In the weights' type, whatever autocast chose.
                x = next((x.to(weight.dtype) for weight in module.parameters()), x)
                # Not by a call, so that hooks do not run.
                # A norm writes over what a convolution of this chain computed.
                x = type(module).forward(module, x, *[True] * (alone and isinstance(module, FrozenNorm)))
                alone = isinstance(module, CONVOLUTIONS)
        x = self.method.reconstruct(compressed) if x is None else x
        return x.to(self.dtype)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's weight."""
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        """Add the gradient of the operation's weight to a total of the weight's shape."""
        add_weight_gradient(total, operation, self.reconstruct(compressed), grad_output, weight)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's input, which needs no activation."""
        return operation.input_gradient(shape, grad_output, weight)


class RematerializedCodec(LayerCodec):
    """The codec of a layer whose input is rematerialized from what its ``source`` saved; it saves nothing itself.

    In a step in which the input is not what the chain computed (a hook replaced it, an operation in place changed it), it
    is saved by the source's method. chain: the modules from the source's input to this layer's. counts: whether the papers'
    memory figure counts the source's tensors at this layer, because the source is frozen.
    """

    def __init__(self, source: LayerCodec, chain: Sequence[nn.Module], counts: bool) -> None:
        super().__init__(source.method, source.seed)
        self.source, self.chain, self.counts = source, chain, counts
        self._saves_itself = False
        source.dependents += 1

    def encode(self, x: Tensor, given: Tensor) -> Encoded:
        origin = self.source.provenance.origin(given)
        saved = None if origin is None else origin.run.take(None if origin.chain else given)
        self._saves_itself = saved is None
        if origin is None or saved is None:
            return super().encode(x, given)
        method, compressed = saved
        return Encoded(Rematerialization(method, origin.chain, x.dtype), compressed, origin.handover)

    def rematerialized_output(self, x: Tensor, module: nn.Module, handover: Handover | None) -> Encoded | None:
        """Return what rematerializes the module's output from its input x, None where x does not come from the source."""
        origin = self.source.provenance.origin(x)
        saved = None if origin is None else origin.run.take()
        if origin is None or saved is None:
            return None
        method, compressed = saved
        return Encoded(Rematerialization(method, origin.after(module), x.dtype), compressed, handover)

    def stored_elements(self, tensor: Tensor) -> int:
        return self.method.stored_elements(tensor) if self.counts or self._saves_itself else 0


class SourceConvolution(CodecLayer, FrozenConvolution):
    """A frozen convolution that saves its input for trained layers after it, whose own inputs are larger."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not runs_plain():
            eagerly(self.codec.encode, (x if x.dim() == self.dimensions else x.unsqueeze(0)).detach(), x)
        return super().forward(x)


class SourceConv1d(SourceConvolution, FrozenConv1d):
    """``SourceConvolution`` of series."""


class SourceConv2d(SourceConvolution, FrozenConv2d):
    """``SourceConvolution`` of pictures."""
