"""What hangs on each kept tensor: the layers and the activations whose gradients are computed from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from fedact.compression import Method
from fedact.nn.graph import downstream
from fedact.nn.layers import SMOOTH
from fedact.nn.layers.base import has_weights
from fedact.nn.rematerialization import Derivations, calls_of, derivations

PIECEWISE = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Group:
    """The input of the layer ``key``, kept in one place.

    layers: the trained layers whose weight gradient is computed from it. before: those whose output's gradient comes through
    an activation whose slope is computed from it. chains: the modules that make each of the other tensors again. masks: the
    activations that keep no mask but read it off what is made again.
    """

    key: str
    layers: tuple[str, ...]
    before: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    masks: tuple[str, ...] = ()


def groups_of(model: nn.Module, methods: Mapping[str, Method]) -> list[Group]:
    """Return the kept tensors of a plain model whose layers have these methods, in the order of the layers."""
    trained = [name for name in methods if has_weights(model.get_submodule(name))]
    passed = downstream(model, trained)
    derived = derivations(model, methods, passed)
    slopes = {name: _slope_from(act, derived, methods) for name, act in _activations_after(model, trained).items()}
    kept = [name for name in methods if name in passed and name not in derived.inputs]
    keys = dict.fromkeys([*(_origin(name, derived) for name in methods if name in passed), *kept])
    return [_group(key, methods, derived, slopes) for key in keys]


def _group(key: str, methods: Mapping[str, Method], derived: Derivations, slopes: Mapping[str, str]) -> Group:
    made = [one.chain for one in [*derived.inputs.values(), *derived.masks.values()] if one.origin == key]
    layers = tuple(name for name in methods if _origin(name, derived) == key)
    before = tuple(name for name, owner in slopes.items() if owner == key)
    return Group(key, layers, before, tuple(made), tuple(name for name, one in derived.masks.items() if one.origin == key))


def _origin(name: str, derived: Derivations) -> str:
    return derived.inputs[name].origin if name in derived.inputs else name


def _slope_from(activation: str, derived: Derivations, methods: Mapping[str, Method]) -> str:
    """Return the layer whose kept input tells an activation's slope, an empty name where it keeps its own mask."""
    if activation in derived.left:
        return _origin(derived.left[activation], derived)
    if activation in derived.masks:
        return derived.masks[activation].origin
    return _origin(activation, derived) if activation in methods else ""


def _activations_after(model: nn.Module, trained: list[str]) -> dict[str, str]:
    """Return the activation that each trained layer's output goes into, before any other layer with weights of its own."""
    calls, modules = calls_of(model), dict(model.named_modules())
    found = {name: _activation_after(calls[name], modules) for name in trained if name in calls}
    return {name: activation for name, activation in found.items() if activation}


def _activation_after(node: Node, modules: Mapping[str, nn.Module]) -> str:
    while len(node.users) == 1:
        (node,) = node.users
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (*PIECEWISE, *SMOOTH)):
            return str(node.target)
        if node.op == "output" or isinstance(module, nn.Conv2d | nn.Linear):
            return ""
    return ""
