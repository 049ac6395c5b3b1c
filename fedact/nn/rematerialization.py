"""Chooses the inputs that are rematerialized: not saved, but recomputed from another layer's saved input."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.compression import Method
from fedact.nn.graph import may_change, named_modules, traced
from fedact.nn.layers import CONVOLUTIONS, NORMS
from fedact.nn.layers.parts import part_of

REPEATABLE = (
    nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity,
)  # fmt: skip
"""Layers whose forward pass can be repeated with the same result (batch norm in eval mode, dropout off)."""
MASK_FROM_OUTPUT = (nn.ReLU, nn.ReLU6)
"""Activations whose gradient mask follows from their output."""


@dataclass(frozen=True)
class Rematerialized:
    """A tensor that the modules of ``chain``, in this order, compute from the saved input of layer ``source``.

    size: the elements of that input over the tensor's.
    """

    source: str
    chain: tuple[str, ...]
    size: float


class Rematerializations(NamedTuple):
    """The tensors that are rematerialized, by module: layers' inputs, and the outputs that activations take masks from.

    deferred: for every activation whose mask is applied by the layer after it, that layer's name.
    """

    inputs: dict[str, Rematerialized]
    masks: dict[str, Rematerialized]
    deferred: dict[str, str]


def rematerializations(
    model: nn.Module, methods: Mapping[str, Method], gradient_path: set[str], streamed: Collection[str] = ()
) -> Rematerializations:
    """Return what is rematerialized in a plain model whose layers have these methods.

    A layer's source is, of the ``recompute`` convolutions before it and those that read the same input, the one with the
    smallest input, if that is no larger than the layer's, or saved in any case. A source's input is always saved, even if
    the source is frozen.
    An activation before a rematerialized input defers its mask to that layer; any other takes it from its rematerialized
    output, one convolution farther than an input, where a source is near enough. gradient_path: names of the modules on it.
    streamed: names of the modules that run in streams, which nothing here is made from (see ``streams.rematerialization``).
    """
    if any(part_of(module) is not None for module in model.modules()):
        # What an update adds to a layer is no part of a chain.
        return Rematerializations({}, {}, {})
    methods = {name: method for name, method in methods.items() if name in gradient_path and name not in streamed}
    reach = max((method.recompute for method in methods.values()), default=0)
    if not reach:
        return Rematerializations({}, {}, {})
    calls, modules = call_nodes(model), dict(named_modules(model))
    # No other layer's input is made from theirs, or through them.
    modules |= dict.fromkeys(streamed, nn.Module())
    inputs = _inputs(calls, modules, methods)
    saved = {name for name, method in methods.items() if method.recompute and name not in inputs}
    sources = {name for name in saved if isinstance(modules[name], CONVOLUTIONS)} | {
        tensor.source for tensor in inputs.values()
    }
    active = {name: calls[name] for name in calls if name in gradient_path and type(modules[name]) in MASK_FROM_OUTPUT}
    deferred = {name: reader for name, node in active.items() if (reader := _only_reader(node)) in inputs}
    ways = {name: upstream(node, None, reach + 1, modules) for name, node in active.items() if name not in deferred}
    nearest = {name: next((tensor for tensor in found if tensor.source in sources), None) for name, found in ways.items()}
    return Rematerializations(inputs, {name: tensor for name, tensor in nearest.items() if tensor}, deferred)


def _inputs(
    calls: Mapping[str, Node], modules: Mapping[str, nn.Module], methods: Mapping[str, Method]
) -> dict[str, Rematerialized]:
    """Return the rematerialized inputs by layer, without the layers that are sources themselves."""
    ways: dict[str, list[Rematerialized]] = {}
    for name, method in methods.items():
        inputs = calls[name].all_input_nodes if method.recompute and name in calls else []
        if len(inputs) == 1:
            layer = calls[name]
            found = [*_siblings(layer, modules), *upstream(inputs[0], layer, method.recompute, modules)]
            ways[name] = sorted((tensor for tensor in found if tensor.source in calls), key=_cost)
    smaller = {name: found[0] for name, found in ways.items() if found and found[0].size <= 1}
    chosen: dict[str, Rematerialized] = {}
    # From the last layer on: whether others need a layer's input is then known before its own is left out.
    sources = set[str]()
    for name in reversed([name for name in calls if name in smaller]):
        if name not in sources:
            chosen[name] = smaller[name]
            sources.add(smaller[name].source)
    # A larger input will do where it is saved in any case: from the first layer on, where maps are large.
    for name in [name for name in calls if name in ways and name not in chosen]:
        if name in sources:
            continue
        kept = (tensor for tensor in ways[name] if tensor.source in methods and tensor.source not in chosen)
        if (tensor := next(kept, None)) is not None:
            chosen[name] = tensor
            sources.add(tensor.source)
    return {name: chosen[name] for name in ways if name in chosen}


def _cost(tensor: Rematerialized) -> tuple[float, int]:
    return tensor.size, len(tensor.chain)


def _only_reader(node: Node) -> str:
    """Return the name of the only module that reads a node's value, an empty one where anything else reads it."""
    first, *others = node.users
    return "" if others or first.op != "call_module" else str(first.target)


def call_nodes(model: nn.Module) -> dict[str, Node]:
    """Return the graph's node for every module that is called exactly once, by name; empty where tracing fails."""
    graph = traced(model)
    nodes = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    calls = Counter(str(node.target) for node in nodes)
    return {str(node.target): node for node in nodes if calls[str(node.target)] == 1}


def _siblings(layer: Node, modules: Mapping[str, nn.Module]) -> Iterator[Rematerialized]:
    """Yield the convolutions that read a layer's input before the layer does, as sources of it."""
    x = layer.all_input_nodes[0]
    for user in x.users:
        if user is layer or may_change(x, None, modules):
            return
        if user.op == "call_module" and type(modules[str(user.target)]) in CONVOLUTIONS:
            yield Rematerialized(str(user.target), (), 1.0)


def upstream(node: Node, reader: Node | None, reach: int, modules: Mapping[str, nn.Module]) -> Iterator[Rematerialized]:
    """Yield the ways to compute a node's value from the input of one of ``reach`` convolutions before it, nearest first.

    Only through values that nothing but their reader in the chain may change in place. reader: of the node's value, None
    for any.
    """
    chain: tuple[str, ...] = ()
    size = 1.0
    while reach and node.op == "call_module" and len(node.all_input_nodes) == 1:
        module, name = modules[str(node.target)], str(node.target)
        x = node.all_input_nodes[0]
        if reader is not None and may_change(node, reader, modules):
            return
        if type(module) not in REPEATABLE or (isinstance(module, NORMS) and module.running_mean is None):
            return
        chain = (name, *chain)
        if isinstance(module, CONVOLUTIONS):
            size *= prod(module.stride) * module.in_channels / module.out_channels
            reach -= 1
            if not may_change(x, node, modules):
                yield Rematerialized(name, chain, size)
        node, reader = x, node
