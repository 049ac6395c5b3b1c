"""Base classes of the memory-saving layers, and the slope of a piecewise linear activation."""

from functools import cache
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from fedact.torch_private import hardtanh_backward, threshold_backward


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over dimension 1 of (examples, channels, height, width)."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Swapped:
    """Base of all layers that surgery installs; ``plain`` is the class that ``restore`` puts back."""

    plain: ClassVar[type[nn.Module]]


def has_weights(module: nn.Module) -> bool:
    """Tell whether a module, or one in it, has parameters to train; those of a ChannelNorm are never trained."""
    return not isinstance(module, ChannelNorm) and any(True for _ in module.parameters())


@cache
def identity_class(plain: Any) -> Any:
    """Return a subclass whose forward returns its input, for a layer such as dropout that is switched off."""

    def forward(self: nn.Module, x: Any) -> Any:
        return x

    return type(f"No{plain.__name__}", (Swapped, plain), {"plain": plain, "forward": forward})


class Slope(NamedTuple):
    """A piecewise linear activation's derivative: ``slope`` strictly between ``lower`` and ``upper``, 0 elsewhere."""

    lower: float
    upper: float
    slope: float = 1.0

    def passes(self, x: Tensor) -> Tensor:
        """Return the gradient's boolean mask, of x's shape; True at a NaN, as in PyTorch."""
        # PyTorch's kernel and a conversion are several times faster than comparisons.
        return self.times(x.new_ones(1), x).bool()

    def times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return grad_output inside the interval, 0 outside, without the slope; x: the input, or (at slope 1) the output."""
        if self.upper == float("inf"):
            return threshold_backward(grad_output, x, self.lower)
        return hardtanh_backward(grad_output, x, self.lower, self.upper)
