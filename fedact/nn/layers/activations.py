"""Activations that keep one bit an element, nothing that is kept anyway, or their input through a method."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.layers.base import Slope, Swapped
from fedact.nn.layers.bitmask import pack_mask, where_set
from fedact.nn.layers.compressed import CodecLayer, LayerCodec, autocast_type, save, saved
from fedact.torch_private import gelu_backward, hardswish_backward, silu_backward


def _plainly(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
    """Return the plain activation of x, in x's place where the module works in place."""
    if module.inplace:
        ctx.mark_dirty(x)
    return module.plain.forward(module, x)  # type: ignore[union-attr, no-any-return]


class _Masked(torch.autograd.Function):
    """A piecewise linear activation that keeps one bit an element: whether the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope) -> Tensor:
        ctx.slope, ctx.order = slope, memory_order(x)
        ctx.save_for_backward(pack_mask(x, ctx.order, slope.passes))
        return _plainly(ctx, x, module)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        passed = where_set(grad_output, packed, ctx.order)
        return passed if ctx.slope.slope == 1.0 else passed.mul_(ctx.slope.slope), None, None


class _FromOutput(torch.autograd.Function):
    """A piecewise linear activation of slope 1 whose output is kept anyway: it tells where the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope) -> Tensor:
        y = _plainly(ctx, x, module)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return ctx.slope.times(grad_output, y), None, None


class _DeferredMask(torch.autograd.Function):
    """A piecewise linear activation whose mask is deferred to the layer after it, which rematerializes its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        return _plainly(ctx, x, module)

    @staticmethod
    @once_differentiable
    def backward(_: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return grad_output, None


class _FromRematerialized(torch.autograd.Function):
    """A piecewise linear activation that computes its mask from its rematerialized output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Slope, codec: LayerCodec) -> Tensor:
        ctx.method, compressed = codec.keep(x)
        save(ctx, ctx.method, compressed)
        ctx.slope = slope
        return _plainly(ctx, x, module)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        compressed, _ = saved(ctx)
        with torch.autocast(grad_output.device.type, enabled=False):
            return ctx.slope.times(grad_output, ctx.method.reconstruct(compressed)), None, None, None


class Masked(Swapped, nn.Module):
    """An activation whose gradient needs one bit an element, or none where the next layer keeps its output as it is.

    mask_is_deferred: the layer after it rematerializes the output and applies the mask. origin: the codec that it
    rematerializes its output from itself.
    """

    output_is_kept: bool = False
    mask_is_deferred: bool = False
    origin: LayerCodec | None = None

    def slope(self) -> Slope:
        """Return where the gradient passes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)  # type: ignore[no-any-return]
        if self.mask_is_deferred:
            return _DeferredMask.apply(x, self)  # type: ignore[no-any-return]
        if self.origin is not None:
            return _FromRematerialized.apply(x, self, self.slope(), self.origin)  # type: ignore[no-any-return]
        # Where autocast makes a copy of the output for the next layer, it is the copy that is kept.
        same = autocast_type(x) in (None, x.dtype)
        function = _FromOutput if self.output_is_kept and same else _Masked
        return function.apply(x, self, self.slope())  # type: ignore[no-any-return]


class MaskedReLU(Masked, nn.ReLU):
    """ReLU that keeps one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.ReLU

    def slope(self) -> Slope:
        return Slope(0.0, float("inf"))


class MaskedReLU6(Masked, nn.ReLU6):
    """ReLU6 that keeps one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.ReLU6

    def slope(self) -> Slope:
        return Slope(self.min_val, self.max_val)


class MaskedHardsigmoid(Masked, nn.Hardsigmoid):
    """Hardsigmoid that keeps one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.Hardsigmoid

    def slope(self) -> Slope:
        return Slope(-3.0, 3.0, 1 / 6)


class _Smooth(torch.autograd.Function):
    """A smooth activation that keeps its input through a method: its gradient is that of the reconstruction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: "Smooth", codec: LayerCodec) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ctx.method, compressed = codec.keep(x)
        y = module.activate(x)
        if module.inplace:
            itself = x.untyped_storage().data_ptr()
            copies = (t.clone() if t.untyped_storage().data_ptr() == itself else t for t in compressed.tensors)
            compressed = compressed._replace(tensors=tuple(copies))
            y = x.copy_(y)
            ctx.mark_dirty(x)
        save(ctx, ctx.method, compressed)
        ctx.module = module
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        compressed, _ = saved(ctx)
        with torch.autocast(grad_output.device.type, enabled=False):
            x = ctx.method.reconstruct(compressed)
            return ctx.module.slope_times(grad_output, x), None, None


class Smooth(CodecLayer):
    """An activation with a continuous slope: no mask says it, so the input is kept."""

    inplace: bool = False

    def activate(self, x: Tensor) -> Tensor:
        """Return the activation of x, which stays as it is."""
        raise NotImplementedError

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)  # type: ignore[no-any-return]
        return _Smooth.apply(x, self, self.codec)  # type: ignore[no-any-return]


class CompressedHardswish(Smooth, nn.Hardswish):
    """Hardswish that keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.Hardswish

    def activate(self, x: Tensor) -> Tensor:
        return F.hardswish(x)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return hardswish_backward(grad_output, x)


class CompressedSiLU(Smooth, nn.SiLU):
    """SiLU that keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.SiLU

    def activate(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return silu_backward(grad_output, x)


class CompressedGELU(Smooth, nn.GELU):
    """GELU that keeps its input through a method."""

    plain: ClassVar[type[nn.Module]] = nn.GELU

    def activate(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        return gelu_backward(grad_output, x, approximate=self.approximate)
