"""A Sequential that runs a norm and a ReLU as one operation, and writes over what a convolution or a linear layer made."""

from functools import cache
from itertools import starmap, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fedact.nn.layers.activations import MaskedReLU, MaskedReLU6
from fedact.nn.layers.base import CONVOLUTIONS, Saving, made_class
from fedact.nn.layers.compressed import CompressedConvolution
from fedact.nn.layers.frozen import FrozenConvolution, FrozenNorm
from fedact.nn.layers.function import is_recorded, runs_plain
from fedact.torch_private import gelu_in_place, is_observed


class FusedSequential(Saving, nn.Sequential):
    """A Sequential in which a norm and the activation after it are one operation, and write over a convolution's output.

    So does a GELU over a linear layer's, where no gradient asks for its input.

    Where nothing else sees what is overwritten or left out. Only here that is known for certain: what a Sequential's child
    returns is read by the next one, and by hooks.
    """

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor) or torch.compiler.is_compiling() or runs_plain():
            return super().forward(input)  # type: ignore[no-untyped-call]
        # Of the layer before, nothing else reads x; the norm is still to run.
        x, alone, norm = input, False, None
        for module, after in pairs(self):
            if norm is not None:
                x, alone, norm = module(x, norm, alone), False, None
            elif after is not None and isinstance(module, FrozenNorm) and _may_be_fused(module, after, x):
                norm = module
            elif alone and isinstance(module, FrozenNorm) and not is_observed(module) and is_layer_itself(module):
                x, alone = module(x, True), False
            elif alone and isinstance(module, nn.GELU):
                x, alone = gelu_over(x, module), False
            else:
                x = module(x)
                alone = _is_alone(module, after) and isinstance(x, Tensor)
        return x


def is_plain_convolution(module: nn.Module) -> bool:
    """Tell whether a module is a convolution that nothing observes, whose output is new, and in no saved tensor."""
    known = isinstance(module, FrozenConvolution | CompressedConvolution)
    return known and is_layer_itself(module) and not is_observed(module)


def _is_alone(module: nn.Module, after: nn.Module | None) -> bool:
    """Tell whether the child after a module may write over its output, which is new and nothing else reads."""
    if isinstance(after, nn.GELU):
        return is_plain_linear(module)
    return isinstance(after, FrozenNorm) and is_plain_convolution(module)


def is_plain_linear(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer that nothing observes, whose output is new, and in no saved tensor."""
    return isinstance(module, nn.Linear) and is_own(module) and not is_observed(module)


def gelu_over(x: Tensor, gelu: nn.GELU) -> Tensor:
    """Return a GELU of x, which nothing else reads, written over it where no gradient asks for x."""
    if is_recorded(x) or is_observed(gelu) or not is_own(gelu):
        y: Tensor = gelu(x)
        return y
    return gelu_in_place(x, approximate=gelu.approximate)


def only_overwrites(module: nn.Module) -> bool:
    """Tell whether a Sequential is fused for GELUs over linear layers alone."""
    fused = isinstance(module, FusedSequential) and type(module).forward is FusedSequential.forward
    return fused and not any(isinstance(each, FrozenNorm) for each in module._modules.values())


def is_own(module: nn.Module) -> bool:
    """Tell whether a linear layer or GELU runs PyTorch's code or fedact's."""
    return "forward" not in vars(module) and (type(module) in (nn.Linear, nn.GELU) or is_layer_itself(module))


def is_layer_itself(module: nn.Module) -> bool:
    """Tell whether a layer runs fedact's code, and no other that was put on since."""
    return type(module).forward.__module__.startswith("fedact.nn.layers.") and "forward" not in vars(module)


def pairs(module: nn.Sequential) -> list[tuple[nn.Module, nn.Module | None]]:
    """Return the children of a Sequential, each with the one after it."""
    children = list(module._modules.values())
    return list(zip_longest(children, children[1:]))


def is_pair(norm: nn.Module, activation: nn.Module | None) -> bool:
    """Tell whether these are a frozen batch norm and a ReLU that saves its mask, neither part of what is rematerialized."""
    return (
        isinstance(norm, FrozenNorm)
        and isinstance(activation, MaskedReLU | MaskedReLU6)
        and not (norm.chains or activation.chains or activation.mask_is_deferred or activation.output_is_saved)
        and activation.source is None
    )


def _are_neighbours(module: nn.Module, after: nn.Module | None) -> bool:
    """Tell whether a module may run as one with the one after it, or be written over by it."""
    written_over = isinstance(module, CONVOLUTIONS) and isinstance(after, FrozenNorm)
    return is_pair(module, after) or written_over or (isinstance(module, nn.Linear) and isinstance(after, nn.GELU))


def _may_be_fused(norm: FrozenNorm, activation: nn.Module, x: Any) -> bool:
    """Tell whether to run a norm and an activation as one operation on x: no hook and no other code is in between."""
    return (
        is_pair(norm, activation)
        and isinstance(x, Tensor)
        and is_recorded(x)
        and not is_recorded(norm.weight, norm.bias)
        and not (is_observed(norm) or is_observed(activation))
        and is_layer_itself(norm)
        and is_layer_itself(activation)
    )


@cache
def fused_class(plain: Any) -> Any:
    """Return the subclass of a Sequential that runs norms and activations as one operation."""
    return made_class(fused_class, plain, f"Fused{plain.__name__}", (FusedSequential, plain), plain=plain)


def fuse(model: nn.Module) -> None:
    """Change the classes of a model's Sequentials in which a child may run with its neighbours, in place."""
    for module in model.modules():
        kind: Any = type(module)
        plain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
        if plain and any(starmap(_are_neighbours, pairs(module))):  # type: ignore[arg-type]
            module.__class__ = fused_class(kind)
