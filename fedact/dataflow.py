"""Which module takes which module's output, straight from the model's own forward code."""

import copy
from collections import defaultdict
from itertools import chain
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import Graph, Node, Tracer

PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Modules that hand on the very tensor they are given (dropout is off)."""


Consumers = dict[str, list[set[str]]]
"""For each module, and each of its calls, the names of the modules that take its output."""

_Structure = tuple[tuple[str, type[nn.Module]], ...]
# A client puts its plan into the same model every round, and tracing takes as long as a small step.
_TRACED: WeakKeyDictionary[nn.Module, tuple[_Structure, Consumers]] = WeakKeyDictionary()


def consumers(model: nn.Module) -> Consumers:
    """Return who takes whose output, empty where it cannot be told.

    The model is traced (torch.fx) on a copy that shares the weights, once for as long as its modules are the same; code that
    cannot be traced tells nothing.
    """
    structure = tuple((name, type(module)) for name, module in model.named_modules())
    if model not in _TRACED or _TRACED[model][0] != structure:
        _TRACED[model] = structure, _traced(model)
    return _TRACED[model][1]


def _traced(model: nn.Module) -> Consumers:
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
    found: Consumers = defaultdict(list)
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
