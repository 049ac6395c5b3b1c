"""What every layer of fedact's own is: a plain class with another ``forward``."""

from functools import cache
from typing import Any, ClassVar

from torch import nn

from fedact.models.channel_norm import ChannelNorm


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
