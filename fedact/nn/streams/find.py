"""Finds the blocks of a network that can run in streams, inverted residuals and others, from its torch.fx graph."""

from collections.abc import Container
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.nn.graph import IDENTITIES, named_modules, traced
from fedact.nn.streams.areas import areas
from fedact.nn.streams.pooled_chain import PooledChain, pooled_chain
from fedact.nn.streams.walk import Stage, Walk, is_dense, is_depthwise, is_pointwise


class Chain(NamedTuple):
    """An inverted residual: [a dense convolution], a depthwise one, a 1 x 1 one, each with its norm and activation.

    first: None where the depthwise convolution reads the block's input. identities: the modules between that do nothing.
    reads_images: whether its input is the model's own. follows: the first module of the chain whose output is its input,
    empty for another input. area: its input's positions, as a share of the images'.
    """

    first: Stage | None
    depthwise: Stage
    project: Stage
    identities: tuple[str, ...] = ()
    reads_images: bool = False
    follows: str = ""
    area: float = 1.0

    @property
    def stages(self) -> list[Stage]:
        return [self.depthwise, self.project] if self.first is None else [self.first, self.depthwise, self.project]

    @property
    def convolutions(self) -> list[str]:
        return [stage.convolution for stage in self.stages]

    @property
    def inside(self) -> list[str]:
        """The names of the modules that run again in the backward pass, in their order."""
        return [name for stage in self.stages[:-1] for name in stage.names()]

    def names(self) -> list[str]:
        """Return the names of its modules that compute, in their order."""
        return [name for stage in self.stages for name in stage.names()]


def find(model: nn.Module, trained: Container[str] = ()) -> list[Chain | PooledChain]:
    """Return the chains of a plain model that can run in streams, in the order they run; none where it cannot be traced.

    trained: names of layers; a block with one of its batch norms among them is left alone. Every module of a chain is called
    once, and its output is read by the next one alone. Left alone are other blocks: with squeeze-and-excitation (its gate
    reads the whole wide tensor), functions between the layers, channel multipliers, grouped expansions, other paddings than
    zeros, and norms that use their batch's statistics.
    """
    graph, modules = traced(model), dict(named_modules(model))
    calls = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    names = [str(node.target) for node in calls]
    walk = Walk(modules, {node for node, name in zip(calls, names, strict=True) if names.count(name) == 1})
    chains: list[Chain | PooledChain] = []
    area = areas(graph, modules) if graph else {}
    taken = set[str]()
    for find_chain in (_chain, pooled_chain):
        for node in calls:
            chain = find_chain(walk, node, taken) if node in walk.once else None
            if chain is not None:
                (start,) = (call for call in walk.once if str(call.target) == chain.names()[0])
                chains.append(chain._replace(area=area[start.all_input_nodes[0]]))
                taken.update(chain.names())
    places = {name: node for name, node in zip(names, calls, strict=True) if node in walk.once}
    frozen = [chain for chain in chains if not any(stage.norm in trained for stage in chain.stages)]
    ends = {places[chain.names()[-1]]: chain.names()[0] for chain in frozen}
    followed = [chain._replace(follows=ends.get(walk.origin(places[chain.names()[0]]), "")) for chain in frozen]
    return sorted(followed, key=lambda chain: names.index(chain.names()[0]))


def _chain(walk: Walk, node: Node, taken: set[str]) -> Chain | None:
    """Return the chain around a depthwise convolution, None where it is in none."""
    if not is_depthwise(walk.module(node)):
        return None
    seen: list[str] = []
    depthwise, last = walk.stage(node, seen)
    project = walk.reader(last, seen)
    if project is None or not is_pointwise(walk.module(project)):
        return None
    end: list[str] = []
    stage, _ = walk.stage(project, end, activated=False)
    seen += end[: end.index(stage.norm)] if stage.norm else []
    first = _first(walk, node, seen)
    first = None if first is None or taken.intersection(first.names()) else first
    chain = Chain(first, depthwise, stage)
    if taken.intersection(chain.names()):
        return None
    start = next(call for call in walk.once if str(call.target) == chain.names()[0])
    reads_images = start.all_input_nodes[0].op == "placeholder"
    identities = tuple(name for name in seen if isinstance(walk.modules[name], IDENTITIES))
    return chain._replace(identities=identities, reads_images=reads_images)


def _first(walk: Walk, depthwise: Node, seen: list[str]) -> Stage | None:
    """Return the stage of the dense convolution whose output the depthwise one reads, None for another input."""
    for node in walk.upstream(depthwise):
        if type(walk.module(node)) is nn.Conv2d:
            passed: list[str] = []
            stage, last = walk.stage(node, passed)
            if is_dense(walk.module(node)) and walk.reader(last, passed) is depthwise:
                seen += passed
                return stage
            return None
    return None
