"""Finds the dense convolutions of a network that can run in streams with the pooling after them."""

from collections.abc import Container
from typing import NamedTuple

from torch import nn
from torch.fx import Node

from fedact.nn.graph import IDENTITIES, operation_name
from fedact.nn.streams.walk import Stage, Walk, is_dense


class PooledChain(NamedTuple):
    """A dense convolution with its norm and activation, whose output a pooling alone reads.

    pooling: the pooling's name; of a function, what a module in its place would be called. takes_maxima: whether it is a
    module that takes maxima; of every channel's mean, the mean is the same again. identities: the modules between that
    do nothing. reads_images, follows, area: as of an inverted residual's chain.
    """

    stage: Stage
    pooling: str
    takes_maxima: bool
    identities: tuple[str, ...] = ()
    reads_images: bool = False
    follows: str = ""
    area: float = 1.0

    @property
    def stages(self) -> list[Stage]:
        return [self.stage]

    @property
    def convolutions(self) -> list[str]:
        return [self.stage.convolution]

    @property
    def inside(self) -> list[str]:
        """The names of the modules that run again in the backward pass, in their order."""
        return self.stage.names()

    def names(self) -> list[str]:
        """Return the names of its modules that compute, in their order; a pooling that takes means is none of them."""
        return [*self.stage.names(), *([self.pooling] if self.takes_maxima else [])]


def pooled_chain(walk: Walk, node: Node, taken: Container[str]) -> PooledChain | None:
    """Return the chain that begins at a call of a module, None where none does, or where it is taken by another one."""
    if not is_dense(walk.module(node)) or str(node.target) in taken:
        return None
    seen: list[str] = []
    stage, last = walk.stage(node, seen)
    end = walk.behind_identities(last, seen)
    if len(end.users) != 1:
        return None
    (pooling,) = end.users
    takes_maxima = pooling in walk.once and is_max_pooling(walk.module(pooling))
    if not takes_maxima and not takes_means(walk, pooling):
        return None
    identities = tuple(dict.fromkeys(name for name in seen if isinstance(walk.modules[name], IDENTITIES)))
    return PooledChain(stage, _name(pooling), takes_maxima, identities, node.all_input_nodes[0].op == "placeholder")


def is_max_pooling(module: nn.Module) -> bool:
    """Tell whether a module is a max pooling that returns the maxima alone."""
    return type(module) is nn.MaxPool2d and not module.return_indices


def takes_means(walk: Walk, node: Node) -> bool:
    """Tell whether a node is the mean of every channel of its input: of means it is the same again."""
    if node.op == "call_module":
        module = walk.module(node)
        return node in walk.once and type(module) is nn.AdaptiveAvgPool2d and _is_one(module.output_size)
    settings, name = [*node.args[1:], *node.kwargs.values()], operation_name(node)
    if name == "adaptive_avg_pool2d":
        return len(settings) == 1 and _is_one(settings[0])
    names = set(node.kwargs) <= {"dim", "axis", "keepdim"}
    dimensions = next((each for each in settings if isinstance(each, list | tuple)), ())
    return name == "mean" and names and sorted(d % 4 for d in dimensions if isinstance(d, int)) == [2, 3]


def _is_one(size: object) -> bool:
    return size == 1 or (isinstance(size, list | tuple) and tuple(size) == (1, 1))


def _name(pooling: Node) -> str:
    if pooling.op == "call_module":
        return str(pooling.target)
    callers = [*(pooling.meta.get("nn_module_stack") or {})][-1:]
    return ".".join([*callers, operation_name(pooling)])
