"""The data flow between a model's modules, traced from its forward code with torch.fx."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from fedact.nn.layers.attention_modules import known_attention
from fedact.nn.layers.encoder_layer import encoder_layer
from fedact.nn.layers.norms import known_norm
from fedact.torch_private import clear_hooks

IDENTITIES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity,
)  # fmt: skip
"""Modules whose output is their input, the same tensor (dropout is off)."""

PRODUCTS = ("mul", "mul_", "imul", "multiply")
"""Functions and methods of two tensors that save both, for the gradient of the other."""

WRITES = ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
"""Functions of ``operator`` that change their first argument."""

VIEWS = (
    "view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "getitem", "narrow", "select", "chunk", "split",
    "tensor_split", "unbind", "unsafe_chunk", "unsafe_split", "split_with_sizes", "hsplit", "vsplit", "dsplit", "transpose",
    "permute", "swapaxes", "swapdims", "moveaxis", "movedim", "adjoint", "t", "T", "mT", "H", "mH", "squeeze", "unsqueeze",
    "expand", "expand_as", "broadcast_to", "diagonal", "unfold", "as_strided", "detach", "data", "real", "imag",
    "contiguous", "to", "type", "float", "double", "numpy", "alias", "dropout", "dropout2d",
)  # fmt: skip
"""Functions, methods and attributes whose result may share a tensor's memory."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
"""Names of the attributes that every ``nn.Module`` has: no settings of its class."""

Consumers = dict[str, list[set[str]]]
"""By module, one set a call: the modules that read its output; empty where an operation may change it in place."""

# A client puts its plan into the same model every round, and tracing takes as long as a small step.
_TRACED: WeakKeyDictionary[nn.Module, tuple[Any, Graph | None]] = WeakKeyDictionary()


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what ``model.named_modules()`` yields, in a fraction of its time: a client's every round asks."""
    found: list[tuple[str, nn.Module]] = []
    known: set[nn.Module] = set()

    def add(prefix: str, module: nn.Module) -> None:
        if module not in known:
            known.add(module)
            found.append((prefix, module))
            for name, child in module._modules.items():
                if child is not None:
                    add(f"{prefix}.{name}" if prefix else name, child)

    add("", model)
    return found


def traced(model: nn.Module) -> Graph | None:
    """Return the model's torch.fx graph, None for code that cannot be traced.

    The trace is of a copy that shares the weights; it is cached until the model's modules or their settings change.
    """
    current = structure(model)
    if model not in _TRACED or _TRACED[model][0] != current:
        _TRACED[model] = current, _trace(model)
    return _TRACED[model][1]


def structure(model: nn.Module) -> Any:
    """Return what a model's graph depends on: name, class and plain attributes of every module. Compare with ``==``."""

    def settings(module: nn.Module) -> list[tuple[str, Any]]:
        attributes = [(name, value) for name, value in vars(module).items() if name not in _OF_EVERY_MODULE]
        return [(name, value) for name, value in attributes if isinstance(value, (bool, int, float, str)) or callable(value)]

    return [(name, type(module), settings(module)) for name, module in named_modules(model)]


def forward_graph(module: nn.Module, plain: type[nn.Module]) -> Graph | None:
    """Return the graph of a module's ``forward`` on one input, with one node for every submodule that it calls.

    plain: the class whose ``forward`` is traced. None for code that cannot be traced, or that creates constant tensors.
    """
    # Blocks in streams know modules further down.
    parts = chain((part for _, part in named_modules(module)[1:]), module.parameters(), module.buffers())
    shared: dict[int, Any] = {id(part): part for part in parts}
    # As in ``_trace``, any code may run and raise anything.
    try:
        skeleton = copy.deepcopy(module, memo=shared)
        skeleton.__class__ = _single_input_class(plain)
        with torch.random.fork_rng():
            graph = _ShallowTracer().trace(skeleton)
        for node in graph.find_nodes(op="get_attr"):
            attrgetter(str(node.target))(module)
    except Exception:
        return None
    return graph


class _ShallowTracer(Tracer):
    """A tracer that records every called submodule as one node."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class _LayerTracer(Tracer):
    """A tracer that records the two projections of attention as layers, one after the other, and known norms as layers."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.path_of_module(m)
        if isinstance(m, nn.MultiheadAttention):
            inputs = (*args, *(value for value in kwargs.values() if isinstance(value, Proxy)))
            attended = self.create_proxy("call_module", name, inputs, {})
            return self.create_proxy("call_module", f"{name}.out_proj", (attended,), {}), None
        if isinstance(m, nn.TransformerEncoder) and args:
            x = args[0]
            for layer in (*m.layers, *([] if m.norm is None else [m.norm])):
                x = layer(x)
            return x
        if isinstance(m, nn.TransformerEncoderLayer) and args:
            # Its ReLU is a function, which saves a mask where the layer is replaced.
            return encoder_layer(m, args[0], (lambda x: x) if m.activation is F.relu else m.activation)
        if known_attention(m):
            projected = self.create_proxy("call_module", f"{name}.qkv", args[:1], {})
            attended = self.create_proxy("call_function", attention, (projected, *args[1:]), kwargs)
            return self.create_proxy("call_module", f"{name}.proj", (attended,), {})
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return known_norm(m) is not None or super().is_leaf_module(m, module_qualified_name)


def attention(projected: Any, *masks: Any, **named_masks: Any) -> Any:
    """Stand in a graph for what is between the projections of attention."""
    raise NotImplementedError("a graph of layers is read, and not run")


def _single_input_class(plain: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass whose forward has one argument; a tracer would put proxies in place of other arguments' defaults."""

    def forward(self: nn.Module, x: Any) -> Any:
        return plain.forward(self, x)

    return type(plain.__name__, (plain,), {"forward": forward})


def consumers(model: nn.Module) -> Consumers:
    """Return the consumers of every module's output, empty for a model that cannot be traced."""
    graph, modules = traced(model), dict(named_modules(model))
    readers: Consumers = defaultdict(list)
    for node in graph.nodes if graph else ():
        if node.op == "call_module":
            changed = any(_may_write(user, modules) for user in node.users)
            readers[str(node.target)].append(set() if changed else _readers(node, modules))
    return readers


def product_factors(model: nn.Module) -> set[str]:
    """Return the names of the modules whose outputs are used only as factors of products of two tensors, which save them."""
    graph = traced(model)
    calls = [node for node in graph.nodes if node.op == "call_module"] if graph else []
    others = {str(node.target) for node in calls if not (node.users and all(map(is_product, node.users)))}
    return {str(node.target) for node in calls} - others


def is_product(node: Node) -> bool:
    """Tell whether a node is a product of two tensors, which saves both."""
    called = node.op in ("call_function", "call_method")
    return called and operation_name(node) in PRODUCTS and len(node.all_input_nodes) == 2


def _trace(model: nn.Module) -> Graph | None:
    weights: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    # Any code may run here, and with stand-ins for tensors it may raise anything.
    try:
        skeleton = copy.deepcopy(model, memo=weights)
        for module in skeleton.modules():
            clear_hooks(module)
        with torch.random.fork_rng():
            return _LayerTracer().trace(skeleton)
    except Exception:
        return None


def _readers(node: Node, modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the modules that read a node's value, directly or through identities."""
    names: set[str] = set()
    for user in node.users:
        if user.op == "call_module":
            name = str(user.target)
            names |= _readers(user, modules) if isinstance(modules[name], IDENTITIES) else {name}
    return names


def may_change(node: Node, reader: Node | None, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether anything but the reader may change a node's value in place, directly or through a view of it."""
    others = [user for user in node.users if user is not reader]
    return any(_may_write(user, modules) or (_is_view(user, modules) and may_change(user, None, modules)) for user in others)


def _may_write(user: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether an operation may change its input in place."""
    if user.op == "call_module":
        return bool(getattr(modules[str(user.target)], "inplace", False))
    name = operation_name(user)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in WRITES
    return in_place or _argument(user, "inplace") is True or "out" in user.kwargs


def _is_view(user: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether an operation may return a view of its input."""
    if user.op == "call_module":
        return isinstance(modules[str(user.target)], (*IDENTITIES, nn.Flatten, nn.Unflatten))
    return operation_name(user) in VIEWS or (user.target is getattr and user.args[1] in VIEWS)


def operation_name(node: Node) -> str:
    """Return the name of a node's method or function, an empty one for other nodes."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _argument(node: Node, name: str) -> Any:
    """Return a named argument of a called function, however it was passed; None where it has none."""
    if node.op != "call_function" or node.kwargs.get(name) is not None:
        return node.kwargs.get(name)
    try:
        return _signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=256)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature, a built-in one's read from its text once; raises TypeError or ValueError for some."""
    return inspect.signature(function)
