"""What every layer of fedact's own is: a plain class with another ``forward``."""

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
    """Marks the classes that surgery puts in and takes out; ``plain`` is the class that was there before."""

    plain: ClassVar[type[nn.Module]]


def has_weights(module: nn.Module) -> bool:
    """Tell whether a module or one in it has parameters that can be trained; a norm over channels never is."""
    return not isinstance(module, ChannelNorm) and any(True for _ in module.parameters())


@cache
def switched_off(plain: Any) -> Any:
    """Return a class of modules that hand their input on."""

    def forward(self: nn.Module, x: Any) -> Any:
        return x

    return type(f"No{plain.__name__}", (Swapped, plain), {"plain": plain, "forward": forward})


class Slope(NamedTuple):
    """A piecewise linear activation: the gradient passes, times ``slope``, strictly between ``lower`` and ``upper``."""

    lower: float
    upper: float
    slope: float = 1.0

    def passes(self, x: Tensor) -> Tensor:
        """Return where the gradient passes; it does through a NaN, as in PyTorch."""
        # PyTorch's kernel and a conversion are several times faster than comparisons.
        return self.times(x.new_ones(1), x).bool()

    def times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return the output's gradient where it passes, zero elsewhere; x: the input, or (at slope 1) the output."""
        if self.upper == float("inf"):
            return threshold_backward(grad_output, x, self.lower)
        return hardtanh_backward(grad_output, x, self.lower, self.upper)
