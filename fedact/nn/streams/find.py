"""Finds the inverted residuals of a network that can run in streams, from its torch.fx graph."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.compression.operations import Convolution
from fedact.nn.graph import IDENTITIES, named_modules, traced

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


class Chain(NamedTuple):
    """An inverted residual: [a dense convolution], a depthwise one, a 1 x 1 one, each with its norm and activation.

    first: None where the depthwise convolution reads the block's input. identities: the modules between that do nothing.
    reads_images: whether its input is the model's own.
    """

    first: Stage | None
    depthwise: Stage
    project: Stage
    identities: tuple[str, ...] = ()
    reads_images: bool = False

    @property
    def stages(self) -> list[Stage]:
        return [self.depthwise, self.project] if self.first is None else [self.first, self.depthwise, self.project]

    @property
    def convolutions(self) -> list[str]:
        return [stage.convolution for stage in self.stages]

    def names(self) -> list[str]:
        """Return the names of its modules that compute, in their order."""
        return [name for stage in self.stages for name in stage.names()]


def find(model: nn.Module) -> list[Chain]:
    """Return the chains of a plain model that can run in streams, in the order they run; none where it cannot be traced.

    Every module of a chain is called once, and its output is read by the next one alone. Left alone are other blocks: with
    squeeze-and-excitation (its gate reads the whole wide tensor), functions between the layers, channel multipliers,
    grouped expansions, other paddings than zeros, and norms that use their batch's statistics.
    """
    graph, modules = traced(model), dict(named_modules(model))
    calls = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    names = [str(node.target) for node in calls]
    walk = _Walk(modules, {node for node, name in zip(calls, names, strict=True) if names.count(name) == 1})
    chains: list[Chain] = []
    for node in calls:
        taken = {name for chain in chains for name in chain.names()}
        if node in walk.once and is_depthwise(modules[str(node.target)]) and (chain := walk.chain(node, taken)):
            chains.append(chain)
    return chains


class _Walk:
    """Steps along a graph from a module to the only reader of its output, or to the module whose output it alone reads."""

    def __init__(self, modules: Mapping[str, nn.Module], once: set[Node]) -> None:
        self.modules, self.once = modules, once

    def chain(self, node: Node, taken: set[str]) -> Chain | None:
        """Return the chain around a depthwise convolution, None where it is in none."""
        seen: list[str] = []
        depthwise, last = self.stage(node, seen)
        project = self.reader(last, seen)
        if project is None or not is_pointwise(self.module(project)):
            return None
        end: list[str] = []
        stage, _ = self.stage(project, end, activated=False)
        seen += end[: end.index(stage.norm)] if stage.norm else []
        first = self.first(node, seen)
        first = None if first is None or taken.intersection(first.names()) else first
        chain = Chain(first, depthwise, stage)
        if taken.intersection(chain.names()):
            return None
        start = next(call for call in self.once if str(call.target) == chain.names()[0])
        reads_images = start.all_input_nodes[0].op == "placeholder"
        identities = tuple(name for name in seen if isinstance(self.modules[name], IDENTITIES))
        return chain._replace(identities=identities, reads_images=reads_images)

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

    def first(self, depthwise: Node, seen: list[str]) -> Stage | None:
        """Return the stage of the dense convolution whose output the depthwise one reads, None for another input."""
        for node in self.upstream(depthwise):
            if type(self.module(node)) is nn.Conv2d:
                passed: list[str] = []
                stage, last = self.stage(node, passed)
                if is_dense(self.module(node)) and self.reader(last, passed) is depthwise:
                    seen += passed
                    return stage
                return None
        return None

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
