"""Blocks of known networks that run their traced code, in which a frozen norm writes over a convolution's output."""

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph

from fedact.nn.code import Code, code_of
from fedact.nn.graph import forward_graph, named_modules
from fedact.nn.layers.base import Saving, Swapped, made_class
from fedact.nn.layers.frozen import FrozenNorm
from fedact.nn.layers.function import runs_plain

PACKAGES = "torchvision", "timm", "segmentation_models_pytorch", "fedact"
"""Packages whose networks compute what torch.fx sees, and keep no tensor besides."""

# A client puts its plan into the same model every round, and tracing takes as long as a small step.
_TRACED: WeakKeyDictionary[nn.Module, dict[Any, Code | None]] = WeakKeyDictionary()


class Block(Saving):
    """A module that runs its traced code."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the plain forward does."""
        module: Any = self
        plain = len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or torch.compiler.is_compiling() or runs_plain()
        if plain or (code := _code(module)) is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return code(module, [args[0]])


def install(model: nn.Module) -> None:
    """Change the classes of a model's blocks that have a convolution and its frozen norm, in place."""
    for _, module in named_modules(model):
        if _has_a_pair(module) and _code(module) is not None:
            kind: Any = type(module)
            module.__class__ = block_class(kind)


@cache
def block_class(plain: Any) -> Any:
    """Return the subclass of a block that runs its traced code."""
    return made_class(block_class, plain, plain.__name__, (Block, plain), plain=plain)


def _has_a_pair(module: nn.Module) -> bool:
    """Tell whether a module of a known network has convolutions and frozen norms of its own."""
    kind: Any = type(module)
    if isinstance(module, Swapped | nn.Sequential) or kind.__module__.partition(".")[0] not in PACKAGES:
        return False
    children = [each for each in module._modules.values() if each is not None]
    return any(isinstance(each, nn.Conv2d) for each in children) and any(isinstance(each, FrozenNorm) for each in children)


def _code(module: nn.Module) -> Code | None:
    """Return a block's code, None where it cannot be traced; traced once for each of the block's settings."""
    codes, settings = _TRACED.setdefault(module, {}), _settings(module)
    if settings not in codes:
        kind: Any = type(module)
        graph = forward_graph(module, kind.plain if isinstance(module, Swapped) else kind)
        codes[settings] = code_of(graph) if graph is not None and _takes_one(graph) else None
    return codes[settings]


def _takes_one(graph: Graph) -> bool:
    return len(graph.find_nodes(op="placeholder")) == 1


def _settings(module: nn.Module) -> Any:
    """Return what a block's code depends on: its plain attributes, and which modules it has."""
    own = tuple((name, value) for name, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return own, tuple((name, child is None) for name, child in module._modules.items())
