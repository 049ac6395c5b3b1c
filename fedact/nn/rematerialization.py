"""Which inputs need not be saved, because a few layers compute them again from another input that is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.compression import Method
from fedact.nn.graph import traced

REPEATABLE = (
    nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU, nn.Dropout, nn.Dropout2d,
    nn.Identity,
)  # fmt: skip
"""Layers that do the same again in the backward pass (batch norm in eval mode, dropout off)."""
TELLING = (nn.ReLU, nn.ReLU6)
"""Activations whose output tells where their gradient passes."""


@dataclass(frozen=True)
class Rematerialized:
    """A tensor that the modules of ``chain``, in this order, compute from the saved input of layer ``origin``.

    size: elements of that input for each of the tensor's.
    """

    origin: str
    chain: tuple[str, ...]
    size: float


class Rematerializations(NamedTuple):
    """What need not be saved, by module: inputs, and masks of activations.

    deferred: activations whose mask the layer after them applies, with that layer's name.
    """

    inputs: dict[str, Rematerialized]
    masks: dict[str, Rematerialized]
    deferred: dict[str, str]


def rematerializations(model: nn.Module, methods: Mapping[str, Method], gradient_path: set[str]) -> Rematerializations:
    """Return what is rematerialized in a plain model whose layers have these methods.

    Of the convolutions up to ``derive`` before a layer, and those with the very same input, the one with the smallest input
    is the origin; none that is larger than the layer's own. An origin's own input is saved, whether it is trained or not.
    An activation before a layer whose input is rematerialized defers its mask to that one; another rematerializes its output
    where there is an origin as near. gradient_path: names of the modules on it.
    """
    methods = {name: method for name, method in methods.items() if name in gradient_path}
    reach = max((method.derive for method in methods.values()), default=0)
    if not reach:
        return Rematerializations({}, {}, {})
    calls, modules = calls_of(model), dict(model.named_modules())
    inputs = _inputs(calls, modules, methods)
    own = {name for name, method in methods.items() if method.derive and name not in inputs}
    kept = {name for name in own if isinstance(modules[name], nn.Conv2d)} | {one.origin for one in inputs.values()}
    active = {name: calls[name] for name in calls if name in gradient_path and type(modules[name]) in TELLING}
    deferred = {name: taker for name, node in active.items() if (taker := _only_taker(node)) in inputs}
    again = {name: [one for one in _upstream(node, reach, modules) if one.origin in kept] for name, node in active.items()}
    return Rematerializations(
        inputs, {name: ones[0] for name, ones in again.items() if ones and name not in deferred}, deferred
    )


def _inputs(
    calls: Mapping[str, Node], modules: Mapping[str, nn.Module], methods: Mapping[str, Method]
) -> dict[str, Rematerialized]:
    fitting: dict[str, Rematerialized] = {}
    for name, method in methods.items():
        inputs = calls[name].all_input_nodes if method.derive and name in calls else []
        sources = [*_beside(calls[name], modules), *_upstream(inputs[0], method.derive, modules)] if len(inputs) == 1 else []
        if possible := [one for one in sources if one.origin in calls and one.size <= 1]:
            fitting[name] = min(possible, key=lambda one: (one.size, len(one.chain)))
    origins = {one.origin for one in fitting.values()}
    return {name: one for name, one in fitting.items() if name not in origins}


def _only_taker(node: Node) -> str:
    """Return the module that alone takes a node's value, an empty name where there is another or it is none."""
    first, *others = node.users
    return "" if others or first.op != "call_module" else str(first.target)


def calls_of(model: nn.Module) -> dict[str, Node]:
    """Return the node of every module that is called just once."""
    graph = traced(model)
    nodes = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    names = [str(node.target) for node in nodes]
    return {name: node for name, node in zip(names, nodes, strict=True) if names.count(name) == 1}


def _beside(layer: Node, modules: Mapping[str, nn.Module]) -> Iterator[Rematerialized]:
    """Yield the convolutions that take the very input of a layer before it does."""
    for user in layer.all_input_nodes[0].users:
        if user is layer:
            return
        if user.op == "call_module" and type(modules[str(user.target)]) is nn.Conv2d:
            yield Rematerialized(str(user.target), (), 1.0)


def _upstream(node: Node, reach: int, modules: Mapping[str, nn.Module]) -> Iterator[Rematerialized]:
    """Yield how a node's value is made from the inputs of the convolutions before it, the nearest first."""
    chain: tuple[str, ...] = ()
    size = 1.0
    while reach and node.op == "call_module" and len(node.all_input_nodes) == 1:
        module, name = modules[str(node.target)], str(node.target)
        if type(module) not in REPEATABLE or (isinstance(module, nn.BatchNorm2d) and module.running_mean is None):
            return
        chain = (name, *chain)
        if isinstance(module, nn.Conv2d):
            size *= prod(module.stride) * module.in_channels / module.out_channels
            reach -= 1
            yield Rematerialized(name, chain, size)
        node = node.all_input_nodes[0]
