"""Activations that save one bit an element, nothing where a neighbour's tensor serves, or their compressed input."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.layers.base import Saving, Slope, noted
from fedact.nn.layers.bitmask import apply_mask, pack_mask
from fedact.nn.layers.codec import Encoded, LayerCodec
from fedact.nn.layers.compressed import CodecLayer, autocast_type, keeps_graph, save, saved
from fedact.nn.layers.frozen import FrozenNorm
from fedact.nn.layers.function import apply, check_first_derivative, is_recorded, runs_plain, without_autocast
from fedact.nn.layers.provenance import Handover
from fedact.nn.layers.rematerialized import RematerializedCodec
from fedact.torch_private import gelu_backward, hardswish_backward, silu_backward


def _plain_forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
    """Return the plain activation of x, written into x where the module is in-place."""
    if module.inplace:
        ctx.mark_dirty(x)
    return module.plain.forward(module, x)  # type: ignore[union-attr, no-any-return]


class _PackedMask(torch.autograd.Function):
    """A piecewise linear activation that saves its gradient mask, one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope) -> Tensor:
        ctx.slope, ctx.order = slope, memory_order(x)
        ctx.save_for_backward(pack_mask(x, ctx.order, slope.passes))
        return _plain_forward(ctx, x, module)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            passes = apply_mask(torch.ones_like(grad_output), packed, ctx.order).bool()
            return torch.where(passes, grad_output * ctx.slope.slope, 0), None, None
        grad_input = apply_mask(grad_output, packed, ctx.order)
        return grad_input if ctx.slope.slope == 1.0 else grad_input.mul_(ctx.slope.slope), None, None


class _MaskFromOutput(torch.autograd.Function):
    """A piecewise linear activation of slope 1 whose mask follows from its output, which the next layer saves anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope) -> Tensor:
        y = _plain_forward(ctx, x, module)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return ctx.slope.times(grad_output, y), None, None


class _MaskFromRematerialized(torch.autograd.Function):
    """A piecewise linear activation that computes its mask from its rematerialized output.

    It need not where the layer after it, which rematerializes the same, hands the masked gradient over.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope, output: Encoded) -> Tensor:
        ctx.method, compressed, ctx.handover = output
        save(ctx, ctx.method, compressed)
        ctx.slope = slope
        return _plain_forward(ctx, x, module)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        masked = None if ctx.handover is None else ctx.handover.take(grad_output)
        if masked is None:
            compressed, _ = saved(ctx)
            with without_autocast(grad_output):
                masked = ctx.slope.times(grad_output, ctx.method.reconstruct(compressed))
        return masked, None, None, None


class Masked(Saving, nn.Module):
    """A piecewise linear activation; its gradient needs a mask of one bit an element, or less.

    output_is_saved: the next layer saves the output exactly, so the mask follows from it. source: the codec from which this
    layer rematerializes its output. mask_is_deferred: the next layer does so too, and hands the masked gradient over.
    """

    output_is_saved: bool = False
    mask_is_deferred: bool = False
    source: RematerializedCodec | None = None

    def slope(self) -> Slope:
        """Return the activation's slope, and the interval in which it has it."""
        raise NotImplementedError

    def forward(self, x: Tensor, norm: FrozenNorm | None = None, overwrites: bool = False) -> Tensor:
        """Return the activation of x.

        norm: one that has not run yet, to run in one operation with the activation; overwrites: written over x.
        """
        if norm is not None:
            return norm.activated(x, self.slope(), overwrites)
        # Before it runs, for it may change x in place.
        origins = [provenance.origin(x) for provenance in self.chains]
        handover = None
        if not is_recorded(x) or runs_plain():
            y = super().forward(x)
        else:
            handover = Handover(self.slope()) if self.mask_is_deferred else None
            y = self._with_gradient(x, handover)
        for provenance, origin in zip(self.chains, origins, strict=True):
            provenance.extend(origin, self, y, handover)
        return y  # type: ignore[no-any-return]

    def _with_gradient(self, x: Tensor, handover: Handover | None) -> Tensor:
        """Return the output, differentiable by the smallest tensor that holds the mask."""
        output = None if self.source is None else self.source.rematerialized_output(x, self, handover)
        if output is not None:
            return apply(_MaskFromRematerialized, x, self, self.slope(), output)  # type: ignore[no-any-return]
        # Where autocast casts the output for the next layer, that one saves the cast copy.
        same = autocast_type(x) in (None, x.dtype)
        function = _MaskFromOutput if self.output_is_saved and same else _PackedMask
        return apply(function, x, self, self.slope())  # type: ignore[no-any-return]


class MaskedReLU(Masked, nn.ReLU):
    """ReLU that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.ReLU

    def slope(self) -> Slope:
        return Slope(0.0, float("inf"))


class MaskedReLU6(Masked, nn.ReLU6):
    """ReLU6 that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.ReLU6

    def slope(self) -> Slope:
        return Slope(self.min_val, self.max_val)


class MaskedHardsigmoid(Masked, nn.Hardsigmoid):
    """Hardsigmoid that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.Hardsigmoid

    def slope(self) -> Slope:
        return Slope(-3.0, 3.0, 1 / 6)


class _Smooth(torch.autograd.Function):
    """A smooth activation that saves its input compressed; its gradient is computed from the reconstruction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: "Smooth", codec: LayerCodec) -> Tensor:
        with without_autocast(x):
            ctx.method, compressed, _ = codec.encode(x, x)
        y = module.activate(x)
        if module.inplace:
            itself = x.untyped_storage().data_ptr()
            copies = (t.clone() if t.untyped_storage().data_ptr() == itself else t for t in compressed.tensors)
            compressed = compressed._replace(tensors=tuple(copies))
            y = x.copy_(y)
            ctx.mark_dirty(x)
        save(ctx, ctx.method, compressed)
        ctx.keeps_graph = keeps_graph(ctx, x, codec, compressed)
        ctx.module = module
        return y

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method, ctx.keeps_graph)
        compressed, _ = saved(ctx)
        with without_autocast(grad_output):
            x = ctx.method.reconstruct(compressed)
            if torch.is_grad_enabled():
                return *torch.autograd.grad(ctx.module.activate(x), x, grad_output, create_graph=True), None, None
            return ctx.module.slope_times(grad_output, x), None, None


class Smooth(CodecLayer):
    """An activation with a continuous slope, which no mask can hold: the input is saved compressed."""

    inplace: bool = False

    def activate(self, x: Tensor) -> Tensor:
        """Return the activation of x, not in place."""
        raise NotImplementedError

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient: grad_output times the slope at x."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.activate(leaf), leaf, grad_output)[0]

    @noted
    def forward(self, x: Tensor) -> Tensor:
        if not self.compresses(x, None):
            return super().forward(x)  # type: ignore[no-any-return]
        return apply(_Smooth, x, self, self.codec)  # type: ignore[no-any-return]


class CompressedHardswish(Smooth, nn.Hardswish):
    """Hardswish that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.Hardswish

    def activate(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return hardswish_backward(grad_output, x)


class CompressedSiLU(Smooth, nn.SiLU):
    """SiLU that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.SiLU

    def activate(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return silu_backward(grad_output, x)


class CompressedGELU(Smooth, nn.GELU):
    """GELU that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.GELU

    def activate(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return gelu_backward(grad_output, x, approximate=self.approximate)
