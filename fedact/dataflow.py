"""Which module takes which module's output, straight from the model's own forward code."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer

PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Modules that hand on the very tensor they are given (dropout is off)."""

Consumers = dict[str, list[set[str]]]
"""For each module and each of its calls, who takes its output; nobody, where something may change it in place."""

# A client puts its plan into the same model every round, and tracing takes as long as a small step.
_TRACED: WeakKeyDictionary[nn.Module, tuple[Any, Graph | None]] = WeakKeyDictionary()


def traced(model: nn.Module) -> Graph | None:
    """Return the model's graph (torch.fx), None for code that cannot be traced.

    Traced on a copy that shares the weights, and once for as long as the model's modules and their settings are the same.
    """
    structure = [(name, type(module), _settings(module)) for name, module in model.named_modules()]
    if model not in _TRACED or _TRACED[model][0] != structure:
        _TRACED[model] = structure, _trace(model)
    return _TRACED[model][1]


def consumers(model: nn.Module) -> Consumers:
    """Return who takes whose output, empty where it cannot be told."""
    graph, modules = traced(model), dict(model.named_modules())
    found: Consumers = defaultdict(list)
    for node in graph.nodes if graph else ():
        if node.op == "call_module":
            changed = any(_may_write(user, modules) for user in node.users)
            found[str(node.target)].append(set() if changed else _takers(node, modules))
    return found


def downstream(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the names of the modules that a gradient to these modules passes, themselves included.

    Where the model cannot be traced, those that are defined after the first of them.
    """
    graph, first, order = traced(model), set(names), list(dict(model.named_modules()))
    if graph is None:
        return set(order[min((order.index(name) for name in first), default=len(order)) :])
    reached: set[Node] = set()
    for node in graph.nodes:
        if (node.op == "call_module" and node.target in first) or reached.intersection(node.all_input_nodes):
            reached.add(node)
    return first | {str(node.target) for node in reached if node.op == "call_module"}


def _trace(model: nn.Module) -> Graph | None:
    weights: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    # Any code may run here, and with stand-ins for tensors it may raise anything.
    try:
        skeleton = copy.deepcopy(model, memo=weights)
        for module in skeleton.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        with torch.random.fork_rng():
            return Tracer().trace(skeleton)
    except Exception:
        return None


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the plain attributes that a module's code may turn on."""
    settings = vars(module).items()
    return [(name, value) for name, value in settings if isinstance(value, bool | int | float | str) or callable(value)]


def _takers(node: Node, modules: dict[str, nn.Module]) -> set[str]:
    names: set[str] = set()
    for user in node.users:
        if user.op == "call_module":
            name = str(user.target)
            names |= _takers(user, modules) if isinstance(modules[name], PASSING) else {name}
    return names


def _may_write(user: Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether an operation may change what it is given in place."""
    if user.op == "call_module":
        return bool(getattr(modules[str(user.target)], "inplace", False))
    name = str(user.target) if user.op == "call_method" else getattr(user.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or bool(user.kwargs.get("inplace")) or "out" in user.kwargs
