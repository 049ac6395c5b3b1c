"""Norms of each example's own statistics: their gradients are those of the reconstructed input, in the exact length.

A norm's input gradient is the inverse deviation of each token (or group) times what follows from the normalized input alone.
A method with loss changes deviations: smaller where it leaves components out, several times as large where a small token
is quantized among large ones. So the exact inverse deviation is saved beside what the method stores, one number a token or
group; the rest follows from the reconstruction, normalized by its own statistics.
"""

from typing import Any

import torch
from torch import Tensor

from fedact.nn.layers.base import noted
from fedact.nn.layers.compressed import CodecLayer, keeps_graph, save, saved
from fedact.nn.layers.function import apply, as_output, check_first_derivative, is_recorded, without_autocast

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of an input, a scale and a shift; None for those that are not asked for."""


class _Normalized(torch.autograd.Function):
    """A norm of x with a scale and a shift, or without, that saves x compressed by the module's method."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, module: "CompressedNorm") -> Tensor:
        with without_autocast(x):
            ctx.method, compressed, _ = module.codec.encode(x, x)
            # Of what is kept as it is, it can be computed again.
            inverse = None if ctx.method.traits.keeps_input else module.inverse_deviation(x, weight)
        others = weight, bias, inverse
        ctx.module, ctx.present = module, [tensor is not None for tensor in others]
        save(ctx, ctx.method, compressed, *(tensor for tensor in others if tensor is not None))
        ctx.keeps_graph = keeps_graph(ctx, x, module.codec, compressed)
        return as_output(module.normalized(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method, ctx.keeps_graph)
        compressed, others = saved(ctx)
        each = iter(others)
        weight, bias, inverse = (next(each) if present else None for present in ctx.present)
        needed = [*ctx.needs_input_grad[:3]]
        with without_autocast(grad_output):
            x = ctx.method.reconstruct(compressed)
            if torch.is_grad_enabled():
                return *_through(ctx.module.normalized, (x, weight, bias), grad_output, needed), None
            return *ctx.module.rescaled_gradients(grad_output, x, weight, bias, needed, inverse), None


def in_type_of(weight: Tensor | None, tensor: Tensor) -> Tensor:
    """Return a tensor in the weight's type: under autocast x, and on a CPU its gradient too, are of a lower one."""
    return tensor if weight is None else tensor.to(weight.dtype)


def _through(function: Any, tensors: tuple[Tensor | None, ...], grad_output: Tensor, needed: list[bool]) -> Gradients:
    """Return the gradients of a function's tensors by autograd, differentiable where a backward pass is."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not differentiable:
            leaves = [tensor if tensor is None else tensor.detach() for tensor in tensors]
            tensors = tuple(t if t is None else t.requires_grad_(need) for t, need in zip(leaves, needed, strict=True))
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None]
        y = function(*tensors)
        found = iter(torch.autograd.grad(y, wanted, grad_output.to(y.dtype), create_graph=differentiable))
    first, second, third = (next(found) if need else None for need in needed)
    return first, second, third


class CompressedNorm(CodecLayer):
    """A norm that computes its statistics from its input: frozen or trained, it saves the input compressed."""

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the norm of x with this scale and shift."""
        raise NotImplementedError

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        """Return the gradients of input, scale and shift that are needed."""
        return _through(self.normalized, (x, weight, bias), grad_output, needed)

    def inverse_deviation(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Return what x is multiplied by, centred or not, before the weight: one number a token, group or channel."""
        raise NotImplementedError

    def rescale(self, gradient: Tensor, ratio: Tensor) -> None:
        """Multiply a gradient of the input's shape, in place, by one number a token, group or channel."""
        gradient.mul_(ratio)

    def rescaled_gradients(
        self,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        needed: list[bool],
        inverse: Tensor | None,
    ) -> Gradients:
        """Return the gradients at a reconstruction x; inverse: the inverse deviation of the input, None for that of x."""
        # First, for it works with a tensor like x.
        ratio = None if inverse is None or not needed[0] else inverse / self.inverse_deviation(x, weight)
        found = self.gradients(grad_output, x, weight, bias, needed)
        if ratio is not None and found[0] is not None:
            self.rescale(found[0], ratio)
        return found

    def slope_times(self, grad_output: Tensor, x: Tensor, exact: Tensor) -> Tensor:
        """Return the input's gradient at a reconstruction x, as an activation does; exact: the input itself."""
        weight, bias = self._scale_and_shift()
        inverse = self.inverse_deviation(exact, weight)
        gradient, _, _ = self.rescaled_gradients(grad_output, x, weight, bias, [True, False, False], inverse)
        assert gradient is not None
        return gradient

    @noted
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._scale_and_shift()
        if not self.compresses(x, next((tensor for tensor in (weight, bias) if is_recorded(tensor)), None)):
            return self.normalized(x, weight, bias)
        return apply(_Normalized, x, weight, bias, self)  # type: ignore[no-any-return]

    def _scale_and_shift(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the weight, read once, for a parametrized one is computed at every reading, and the bias."""
        module: Any = self
        return module.weight, getattr(module, "bias", None)
