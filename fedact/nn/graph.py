"""Which module takes which module's output, straight from the model's own forward code."""

import copy
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer

from fedact.torch_private import clear_hooks

PASSING = (nn.Dropout, nn.Dropout2d, nn.Identity)
"""Modules that hand on the very tensor they are given (dropout is off)."""

PRODUCTS = ("mul", "mul_", "imul", "multiply")
"""Functions and methods that keep each of two tensors for the gradient of the other."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""What torch's own code hangs on a module, be it what it may."""

Consumers = dict[str, list[set[str]]]
"""For each module and each of its calls, who takes its output; nobody, where something may change it in place."""

# A client puts its plan into the same model every round, and tracing takes as long as a small step.
_TRACED: WeakKeyDictionary[nn.Module, tuple[Any, Graph | None]] = WeakKeyDictionary()


def traced(model: nn.Module) -> Graph | None:
    """Return the model's graph (torch.fx), None for code that cannot be traced.

    Traced on a copy that shares the weights, and once for as long as the model's modules and their settings are the same.
    """
    now = structure(model)
    if model not in _TRACED or _TRACED[model][0] != now:
        _TRACED[model] = now, _trace(model)
    return _TRACED[model][1]


def structure(model: nn.Module) -> Any:
    """Return what a model's graph depends on: its modules, and the settings that their code may turn on."""
    return [(name, type(module), _settings(module)) for name, module in model.named_modules()]


def own_code(module: nn.Module, plain: type[nn.Module]) -> Graph | None:
    """Return the graph of a module's own code on one input, where each module that it calls is one node.

    plain: the class whose code it is. None for code that cannot be traced, or that makes tensors of its own on the way.
    """
    shared: dict[int, Any] = {id(each): each for each in chain(module.children(), module.parameters(), module.buffers())}
    # As in ``_trace``, any code may run and raise anything.
    try:
        skeleton = copy.deepcopy(module, memo=shared)
        skeleton.__class__ = _of_one_input(plain)
        with torch.random.fork_rng():
            graph = _OwnCode().trace(skeleton)
        for node in graph.find_nodes(op="get_attr"):
            attrgetter(str(node.target))(module)
    except Exception:
        return None
    return graph


class _OwnCode(Tracer):
    """Looks into no module that the code calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _of_one_input(plain: type[nn.Module]) -> type[nn.Module]:
    """Return the class with a forward of one input, all else at its defaults: a tracer's stand-in is no default."""

    def forward(self: nn.Module, x: Any) -> Any:
        return plain.forward(self, x)

    return type(plain.__name__, (plain,), {"forward": forward})


def consumers(model: nn.Module) -> Consumers:
    """Return who takes whose output, empty where it cannot be told."""
    graph, modules = traced(model), dict(model.named_modules())
    found: Consumers = defaultdict(list)
    for node in graph.nodes if graph else ():
        if node.op == "call_module":
            changed = any(_may_write(user, modules) for user in node.users)
            found[str(node.target)].append(set() if changed else _takers(node, modules))
    return found


def factors(model: nn.Module) -> set[str]:
    """Return the names of the modules whose every output goes into products of two tensors alone, which keep it anyway."""
    graph = traced(model)
    calls = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    others = {str(node.target) for node in calls if not (node.users and all(map(_is_product, node.users)))}
    return {str(node.target) for node in calls} - others


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
            clear_hooks(module)
        with torch.random.fork_rng():
            return Tracer().trace(skeleton)
    except Exception:
        return None


def _settings(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the plain attributes that a module's code may turn on."""
    own = [(name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
    return [(name, value) for name, value in own if isinstance(value, (bool, int, float, str)) or callable(value)]


def _takers(node: Node, modules: dict[str, nn.Module]) -> set[str]:
    names: set[str] = set()
    for user in node.users:
        if user.op == "call_module":
            name = str(user.target)
            names |= _takers(user, modules) if isinstance(modules[name], PASSING) else {name}
    return names


def _is_product(node: Node) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in PRODUCTS and len(node.all_input_nodes) == 2


def _may_write(user: Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether an operation may change what it is given in place."""
    if user.op == "call_module":
        return bool(getattr(modules[str(user.target)], "inplace", False))
    name = str(user.target) if user.op == "call_method" else getattr(user.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or bool(user.kwargs.get("inplace")) or "out" in user.kwargs
