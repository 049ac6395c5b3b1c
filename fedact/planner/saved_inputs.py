"""The inputs that a step saves, each with the layers and activation functions whose gradients are computed from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from fedact.compression import Method
from fedact.nn.body import light_layers
from fedact.nn.gradient_path import downstream
from fedact.nn.layers import SMOOTH
from fedact.nn.layers.base import has_weights
from fedact.nn.rematerialization import Rematerializations, call_nodes
from fedact.nn.streams.find import find
from fedact.nn.streams.rematerialization import saving_chains, step_rematerializations

PIECEWISE = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class SavedInput:
    """The input of the layer ``key``, saved once for everything that needs it in the backward pass.

    layers: the trained layers whose weight gradient is computed from it. slope_layers: those whose output gradient passes
    an activation function whose slope is computed from it. chains: for each rematerialized tensor, the modules that compute
    it from this input; in streams of the last one alone, for the others are made on the way. masks: the activation functions
    that save no mask but take it from what is rematerialized.
    """

    key: str
    layers: tuple[str, ...]
    slope_layers: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]
    masks: tuple[str, ...] = ()


def saved_inputs(model: nn.Module, methods: Mapping[str, Method], in_streams: bool = False) -> list[SavedInput]:
    """Return the saved inputs of a plain model whose layers have these methods, in the order of the layers.

    in_streams: whether its inverted residuals run so.
    """
    trained = [name for name in methods if has_weights(model.get_submodule(name))]
    gradient_path = downstream(model, [*trained, *light_layers(model)])
    derived = step_rematerializations(model, methods, gradient_path, in_streams)
    streamed = saving_chains(find(model, methods), methods) if in_streams else []
    once = {chain.names()[0]: tuple(chain.inside) for chain in streamed}
    slopes = _slope_sources(model, trained, derived, methods)
    saved = [name for name in methods if name in gradient_path and name not in derived.inputs]
    keys = dict.fromkeys([*(_origin(name, derived) for name in methods if name in gradient_path), *saved])
    return [
        SavedInput(
            key,
            layers=tuple(name for name in methods if _origin(name, derived) == key),
            slope_layers=tuple(name for name, source in slopes.items() if source == key),
            chains=(once[key],) if key in once else _chains_from(key, derived),
            masks=tuple(name for name, one in derived.masks.items() if one.source == key),
        )
        for key in keys
    ]


def _chains_from(key: str, derived: Rematerializations) -> tuple[tuple[str, ...], ...]:
    return tuple(one.chain for one in [*derived.inputs.values(), *derived.masks.values()] if one.source == key)


def _origin(name: str, derived: Rematerializations) -> str:
    """Return the layer whose saved input the named layer's input is, or is rematerialized from."""
    return derived.inputs[name].source if name in derived.inputs else name


def _slope_sources(
    model: nn.Module, trained: list[str], derived: Rematerializations, methods: Mapping[str, Method]
) -> dict[str, str]:
    """Return, for each trained layer before an activation function, the saved input that gives the function's slope.

    An empty name where the function saves a mask of its own.
    """
    calls, modules, sources = call_nodes(model), dict(model.named_modules()), dict[str, str]()
    for name in trained:
        path = path_to_activation(calls[name], modules) if name in calls else ()
        activation = str(path[-1].target) if path else ""
        if activation in derived.deferred:
            sources[name] = _origin(derived.deferred[activation], derived)
        elif activation in derived.masks:
            sources[name] = derived.masks[activation].source
        elif activation:
            sources[name] = _origin(activation, derived) if activation in methods else ""
    return sources


def path_to_activation(node: Node, modules: Mapping[str, nn.Module]) -> tuple[Node, ...]:
    """Return what a layer's output passes up to the first activation function, none where another layer comes before it."""
    path: tuple[Node, ...] = ()
    while len(node.users) == 1:
        (node,) = node.users
        path = (*path, node)
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, (*PIECEWISE, *SMOOTH)):
            return path
        if node.op == "output" or isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            return ()
    return ()
