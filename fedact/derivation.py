"""Which inputs need not be kept because they follow, by a few frozen or trained layers, from another one that is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.fx import Node

from fedact.compression import Method
from fedact.dataflow import traced

REPEATABLE = (
    nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU, nn.Dropout, nn.Dropout2d,
    nn.Identity,
)  # fmt: skip
"""Layers that do the same again in the backward pass (batch norm in eval mode, dropout off)."""
PIECEWISE_LINEAR = (nn.ReLU, nn.ReLU6, nn.Hardsigmoid)
"""Activations whose output tells where their gradient passes."""


@dataclass(frozen=True)
class Derivation:
    """A tensor as what the modules of ``chain``, in this order, make of the input that is kept at ``origin``.

    size: elements of that input for each of the tensor's.
    """

    origin: str
    chain: tuple[str, ...]
    size: float


def derived_inputs(model: nn.Module, methods: Mapping[str, Method]) -> dict[str, Derivation]:
    """Return the layers whose input is made again, by name; a plain model.

    Of the convolutions up to ``derive`` before a layer, and those with the very same input, the one with the smallest input
    is the origin; none that is larger than the layer's own. An origin's own input is kept, whether it is trained or not.
    """
    calls = _calls(model)
    modules = dict(model.named_modules())
    fitting: dict[str, Derivation] = {}
    for name, method in methods.items():
        inputs = calls[name].all_input_nodes if method.derive and name in calls else []
        sources = _upstream(inputs[0], method.derive, modules, calls[name]) if len(inputs) == 1 else ()
        if possible := [one for one in sources if one.origin in calls and one.size <= 1]:
            fitting[name] = min(possible, key=lambda one: (one.size, len(one.chain)))
    origins = {one.origin for one in fitting.values()}
    return {name: one for name, one in fitting.items() if name not in origins}


def derived_masks(
    model: nn.Module, derived: Mapping[str, Derivation], passed: set[str], kept: set[str], reach: int
) -> tuple[dict[str, str], dict[str, Derivation]]:
    """Return the activations that leave their mask to the one layer after them, and those that make it again themselves.

    passed: the modules that a gradient passes; kept: the convolutions whose input is kept; reach: how many of them at most
    lie between. The first by the layer's name, the second with how their output is made.
    """
    calls, modules = _calls(model), dict(model.named_modules())
    left: dict[str, str] = {}
    again: dict[str, Derivation] = {}
    for name, node in calls.items():
        if name not in passed or type(modules[name]) not in PIECEWISE_LINEAR:
            continue
        users = [str(user.target) for user in node.users if user.op == "call_module"]
        if len(node.users) == len(users) == 1 and users[0] in derived:
            left[name] = users[0]
        elif sources := [one for one in _upstream(node, reach, modules, None) if one.origin in kept]:
            again[name] = sources[0]
    return left, again


def _calls(model: nn.Module) -> dict[str, Node]:
    """Return the node of every module that is called just once."""
    graph = traced(model)
    nodes = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    names = [str(node.target) for node in nodes]
    return {name: node for name, node in zip(names, nodes, strict=True) if names.count(name) == 1}


def _upstream(node: Node, reach: int, modules: Mapping[str, nn.Module], layer: Node | None) -> Iterator[Derivation]:
    """Yield how a node's value is made from the inputs of the convolutions before it, the nearest first."""
    for user in node.users if layer is not None else ():
        if user is layer:
            break
        if user.op == "call_module" and type(modules[str(user.target)]) is nn.Conv2d:
            yield Derivation(str(user.target), (), 1.0)
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
            yield Derivation(name, chain, size)
        node = node.all_input_nodes[0]
