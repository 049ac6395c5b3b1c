"""A Sequential that runs a frozen batch norm and the ReLU after it as one operation."""

from functools import cache
from itertools import starmap, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fedact.nn.layers.activations import Masked, MaskedReLU, MaskedReLU6
from fedact.nn.layers.base import Saving, made_class
from fedact.nn.layers.frozen import FrozenNorm
from fedact.nn.layers.function import is_recorded, runs_plain
from fedact.torch_private import is_observed


class FusedSequential(Saving, nn.Sequential):
    """A Sequential in which a norm and the activation after it are one operation, where nothing else sees the norm's output.

    Only here that is known for certain: what a Sequential's child returns is read by the next one, and by hooks.
    """

    def forward(self, input: Any) -> Any:
        if not isinstance(input, Tensor) or not torch.is_grad_enabled() or torch.compiler.is_compiling() or runs_plain():
            return super().forward(input)  # type: ignore[no-untyped-call]
        x, norm = input, None
        for module, after in pairs(self):
            if norm is not None:
                x, norm = module(x, norm), None
            elif after is not None and isinstance(module, FrozenNorm) and _may_be_fused(module, after, x):
                norm = module
            else:
                x = module(x)
        return x


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


def _may_be_fused(norm: FrozenNorm, activation: nn.Module, x: Any) -> bool:
    """Tell whether to run a norm and an activation as one operation on x: no hook and no other code is in between."""
    return (
        is_pair(norm, activation)
        and isinstance(x, Tensor)
        and is_recorded(x)
        and not is_recorded(norm.weight, norm.bias)
        and not (is_observed(norm) or is_observed(activation))
        and type(norm).forward is FrozenNorm.forward
        and type(activation).forward is Masked.forward
        and not ("forward" in vars(norm) or "forward" in vars(activation))
    )


@cache
def fused_class(plain: Any) -> Any:
    """Return the subclass of a Sequential that runs norms and activations as one operation."""
    return made_class(fused_class, plain, f"Fused{plain.__name__}", (FusedSequential, plain), plain=plain)


def fuse(model: nn.Module) -> None:
    """Change the classes of a model's Sequentials that have a norm and an activation to run as one, in place."""
    for module in model.modules():
        kind: Any = type(module)
        plain = isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward
        if plain and any(starmap(is_pair, pairs(module))):  # type: ignore[arg-type]
            module.__class__ = fused_class(kind)
