"""How many positions the values of a network have, as a share of its images'."""

from collections.abc import Mapping
from math import prod

from torch import nn
from torch.fx import Graph, Node


def areas(graph: Graph, modules: Mapping[str, nn.Module]) -> dict[Node, float]:
    """Return the positions of every value of a graph, as a share of the images'."""
    found: dict[Node, float] = {}
    for node in graph.nodes:
        area = max((found[each] for each in node.all_input_nodes), default=1.0)
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        found[node] = area if module is None else area / reduction(module)
    return found


def reduction(module: nn.Module) -> float:
    """Return how many times fewer positions a module's output has."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return 1.0
    stride = module.stride
    return float(prod(stride) if isinstance(stride, tuple) else stride**2)
