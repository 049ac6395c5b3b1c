"""Piecewise linear activations, which save one bit an element, and more smooth ones, which save their compressed input."""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.layers.activations import Masked, Smooth
from fedact.nn.layers.base import Saving, Slope, made_class, noted
from fedact.nn.layers.bitmask import apply_mask, pack_mask
from fedact.nn.layers.function import apply, is_recorded, runs_plain

POSITIVE = Slope(0.0, float("inf"))
"""Where an activation of two slopes has a slope of 1."""


class MaskedHardtanh(Masked, nn.Hardtanh):
    """Hardtanh that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.Hardtanh

    def slope(self) -> Slope:
        return Slope(self.min_val, self.max_val)


class _TwoSlopes(torch.autograd.Function):
    """An activation whose slope is 1 above 0 and ``slope`` elsewhere, of which it saves which one: a bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, slope: Tensor | float) -> Tensor:
        ctx.order, ctx.is_tensor = memory_order(x), isinstance(slope, Tensor)
        packed = pack_mask(x, ctx.order, POSITIVE.passes)
        if isinstance(slope, Tensor):
            ctx.save_for_backward(packed, slope)
        else:
            ctx.slope = slope
            ctx.save_for_backward(packed)
        if getattr(module, "inplace", False):
            ctx.mark_dirty(x)
        return module.plain.forward(module, x)  # type: ignore[union-attr, no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        packed, *slopes = ctx.saved_tensors
        slope = slopes[0].to(grad_output.dtype) if slopes else ctx.slope
        passes = apply_mask(torch.ones_like(grad_output), packed, ctx.order).bool()
        return torch.where(passes, grad_output, grad_output * slope), None, None


class TwoSlopes(Saving, nn.Module):
    """An activation that is the identity above 0, and has another slope elsewhere; it saves one bit an element."""

    def slope(self, x: Tensor) -> Tensor | float:
        """Return the slope where x is not above 0, in a shape that x broadcasts with."""
        raise NotImplementedError

    @noted
    def forward(self, x: Tensor) -> Tensor:
        # A trained slope's own gradient needs the input.
        if not is_recorded(x) or is_recorded(*self.parameters()) or runs_plain():
            return super().forward(x)  # type: ignore[no-any-return]
        return apply(_TwoSlopes, x, self, self.slope(x))  # type: ignore[no-any-return]


class MaskedLeakyReLU(TwoSlopes, nn.LeakyReLU):
    """LeakyReLU that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.LeakyReLU

    def slope(self, x: Tensor) -> float:
        return self.negative_slope


class MaskedPReLU(TwoSlopes, nn.PReLU):
    """PReLU with frozen slopes that saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.PReLU

    def slope(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        return weight if weight.numel() == 1 else weight.view(-1, *[1] * (x.dim() - 2))


ACTIVATE: dict[Any, Callable[[Any, Tensor], Tensor]] = {
    nn.ELU: lambda module, x: F.elu(x, module.alpha),
    nn.CELU: lambda module, x: F.celu(x, module.alpha),
    nn.SELU: lambda _, x: F.selu(x),
    nn.Mish: lambda _, x: F.mish(x),
    nn.Softplus: lambda module, x: F.softplus(x, module.beta, module.threshold),
}
"""Smooth activations, not in place."""


@cache
def smooth_class(plain: Any) -> Any:
    """Return the subclass of a smooth activation that saves its input compressed."""

    def activate(self: Any, x: Tensor) -> Tensor:
        return ACTIVATE[plain](self, x)

    return made_class(smooth_class, plain, f"Compressed{plain.__name__}", (Smooth, plain), plain=plain, activate=activate)
