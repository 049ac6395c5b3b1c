"""Steps along a torch.fx graph, from one convolution of a block that may run in streams to the next."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.compression.operations import Convolution
from fedact.nn.graph import IDENTITIES

PIECEWISE = (nn.ReLU, nn.ReLU6)
SMOOTH = (nn.Hardswish, nn.SiLU, nn.GELU)
"""Activations that may come after a norm in a stream; the gradient of the smooth ones needs their input, made again."""


class Stage(NamedTuple):
    """The names of a convolution, of the batch norm on its output and of the activation after; empty for none."""

    convolution: str
    norm: str = ""
    activation: str = ""

    def names(self) -> list[str]:
        return [name for name in self if name]


class Walk:
    """Steps along a graph from a module to the only reader of its output, or to the module whose output it alone reads."""

    def __init__(self, modules: Mapping[str, nn.Module], once: set[Node]) -> None:
        self.modules, self.once = modules, once

    def stage(self, node: Node, seen: list[str], activated: bool = True) -> tuple[Stage, Node]:
        """Return the stage that begins at a convolution, and its last node; adds the modules passed to ``seen``."""
        norm = activation = ""
        after = self.reader(node, seen)
        if after is not None and is_norm(self.module(after)):
            norm, node = str(after.target), after
            after = self.reader(node, seen) if activated else None
        if activated and after is not None and type(self.module(after)) in PIECEWISE + SMOOTH:
            activation, node = str(after.target), after
        first = str(self.source(node, norm, activation).target)
        return Stage(first, norm, activation), node

    def source(self, node: Node, norm: str, activation: str) -> Node:
        """Return the convolution of a stage that ends at this node."""
        while str(node.target) in (norm, activation) or isinstance(self.module(node), IDENTITIES):
            node = node.all_input_nodes[0]
        return node

    def upstream(self, node: Node) -> Iterator[Node]:
        while len(node.all_input_nodes) == 1 and node.all_input_nodes[0] in self.once:
            node = node.all_input_nodes[0]
            yield node

    def reader(self, node: Node, seen: list[str]) -> Node | None:
        """Return the only reader of a node's value behind identities, if it is a module that is called once."""
        while len(node.users) == 1:
            (node,) = node.users
            if node not in self.once or len(node.all_input_nodes) != 1:
                return None
            seen.append(str(node.target))
            if not isinstance(self.module(node), IDENTITIES):
                return node
        return None

    def origin(self, node: Node) -> Node:
        """Return the node whose value a module reads, perhaps through identities."""
        node = node.all_input_nodes[0]
        while node in self.once and isinstance(self.module(node), IDENTITIES):
            node = node.all_input_nodes[0]
        return node

    def behind_identities(self, node: Node, seen: list[str]) -> Node:
        """Return the last of the modules that hand a node's value on as it is, or the node; adds them to ``seen``."""
        while len(node.users) == 1:
            (user,) = node.users
            if user not in self.once or not isinstance(self.module(user), IDENTITIES):
                break
            seen.append(str(user.target))
            node = user
        return node

    def module(self, node: Node) -> nn.Module:
        return self.modules[str(node.target)]


def is_dense(module: nn.Module) -> bool:
    """Tell whether a module is a convolution of all channels, padded with zeros in itself."""
    return type(module) is nn.Conv2d and module.groups == 1 and not any(Convolution.of(module).edges)


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a module is a convolution of each channel by itself, padded with zeros in itself."""
    if type(module) is not nn.Conv2d or any(Convolution.of(module).edges):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module is a 1 x 1 convolution of all channels."""
    return type(module) is nn.Conv2d and Convolution.of(module).is_pointwise(module.weight)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a batch norm with running statistics."""
    return type(module) is nn.BatchNorm2d and module.running_mean is not None
