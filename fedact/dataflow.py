"""Which module takes which module's output, straight from the model's own forward code."""

import copy
from collections import defaultdict
from itertools import chain

from torch import nn
from torch.fx import Graph, Node, Tracer

PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Modules that hand on the very tensor they are given (dropout is off)."""


def consumers(model: nn.Module) -> dict[str, list[set[str]]]:
    """Return, for each of a module's calls, the names of the modules that take its output; empty where it cannot be told.

    The model is traced (torch.fx) on a copy that shares the weights; code that cannot be traced tells nothing.
    """
    weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    skeleton = copy.deepcopy(model, memo=weights)
    for module in skeleton.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        graph: Graph = Tracer().trace(skeleton)
    # Any code may run here, and with stand-ins for tensors it may raise anything.
    except Exception:
        return {}
    modules = dict(skeleton.named_modules())
    found: dict[str, list[set[str]]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module":
            found[str(node.target)].append(_takers(node, modules))
    return found


def _takers(node: Node, modules: dict[str, nn.Module]) -> set[str]:
    names: set[str] = set()
    for user in node.users:
        if user.op == "call_module":
            name = str(user.target)
            names |= _takers(user, modules) if isinstance(modules[name], PASSING) else {name}
    return names
