"""Blocks of known networks that run their traced code: norms write over convolutions' outputs, no call keeps its input."""

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph

from fedact.nn.code import Code, code_of
from fedact.nn.graph import forward_graph, named_modules
from fedact.nn.layers.base import CONVOLUTIONS, Saving, Swapped, made_class
from fedact.nn.layers.frozen import FrozenNorm
from fedact.nn.layers.function import runs_plain
from fedact.nn.layers.fused import only_overwrites
from fedact.torch_private import is_observed

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
    """Change the classes of a model's blocks to which it makes a difference, in place."""
    for _, module in named_modules(model):
        if _gains(module) and _code(module) is not None:
            kind: Any = type(module)
            module.__class__ = block_class(kind)


@cache
def block_class(plain: Any) -> Any:
    """Return the subclass of a block that runs its traced code."""
    return made_class(block_class, plain, plain.__name__, (Block, plain), plain=plain)


def _gains(module: nn.Module) -> bool:
    """Tell whether a module of a known network has convolutions and frozen norms of its own, or calls a Sequential."""
    kind: Any = type(module)
    if isinstance(module, Swapped | nn.Sequential) or kind.__module__.partition(".")[0] not in PACKAGES:
        return False
    children = [each for each in module._modules.values() if each is not None]
    convolutions, norms = (any(isinstance(each, kind) for each in children) for kind in (CONVOLUTIONS, FrozenNorm))
    return (convolutions and norms) or any(map(_called, children))


def inlined(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the Sequentials, with their children's names, whose children a block calls in their place; none of others."""
    if not isinstance(module, Block):
        return {}
    return {name: called for name, child in module._modules.items() if (called := _called(child))}


def _called(module: nn.Module | None) -> tuple[str, ...]:
    """Return the names of a plain Sequential's children, which may be called in its place; none of other modules."""
    plain = isinstance(module, nn.Sequential) and (type(module).forward is nn.Sequential.forward or only_overwrites(module))
    return tuple(module._modules) if module is not None and plain and not is_observed(module) else ()


def _code(module: nn.Module) -> Code | None:
    """Return a block's code, None where it cannot be traced; traced once for each of the block's settings."""
    codes, settings = _TRACED.setdefault(module, {}), _settings(module)
    if settings not in codes:
        kind: Any = type(module)
        graph = forward_graph(module, kind.plain if isinstance(module, Swapped) else kind)
        _, children = settings
        inlined = {name: called for name, _, called in children if called}
        codes[settings] = code_of(graph, inlined) if graph is not None and _takes_one(graph) else None
    return codes[settings]


def _takes_one(graph: Graph) -> bool:
    return len(graph.find_nodes(op="placeholder")) == 1


def _settings(module: nn.Module) -> Any:
    """Return what a block's code depends on: its plain attributes, which modules it has, and what to call in their place."""
    own = tuple((name, value) for name, value in vars(module).items() if isinstance(value, (bool, int, float, str)))
    return own, tuple((name, child is None, _called(child)) for name, child in module._modules.items())
