"""What no method compresses: named in a warning."""

import warnings
from collections.abc import Mapping

from torch import nn

from fedact.compression import Method
from fedact.nn.graph import named_modules
from fedact.nn.layers import CodecLayer, Swapped

SAVES_NOTHING = (
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.ConstantPad1d, nn.CircularPad1d, nn.ConstantPad2d, nn.CircularPad2d,
)  # fmt: skip
"""Layers whose gradient needs no saved activation."""
GATES = (nn.Sigmoid,)
"""Activations that save only their output; free where a product saves it anyway."""


def warn(
    model: nn.Module, methods: Mapping[str, Method], gradient_path: set[str], candidates: set[str], functions: list[str]
) -> None:
    """Warn of layers whose activations autograd still saves: those with a method on the gradient path, and candidates.

    functions: what else to name, functions in forward code.
    """
    modules = dict(named_modules(model))
    # A frozen linear layer saves its weight alone.
    fine = (Swapped, nn.Linear, nn.Sequential, nn.ModuleList, nn.ModuleDict, *SAVES_NOTHING)

    def is_plain_layer(module: nn.Module) -> bool:
        of_torch = type(module).__module__.startswith("torch.nn")
        return of_torch and not isinstance(module, fine) and not any(True for _ in module.children())

    uncompressed = [name for name in methods if name in gradient_path and not isinstance(modules[name], CodecLayer)]
    others = [name for name in modules if name in candidates and name not in uncompressed]
    uncompressed += [name for name in others if is_plain_layer(modules[name])]
    named = [*(f"{name} ({type(modules[name]).__name__})" for name in uncompressed), *functions]
    if named:
        listed = ", ".join(named)
        warnings.warn(f"not compressed, autograd keeps what they need: {listed}", stacklevel=4)
