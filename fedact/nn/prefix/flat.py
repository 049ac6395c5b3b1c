"""A frozen prefix's graph with what its modules do in place of them."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fedact.nn.graph import forward_graph, structure
from fedact.nn.prefix.tiles_operations import module_operation, plain_class
from fedact.torch_private import is_observed

# A planner asks for prefixes of many lengths and in several states, of which most modules are the same.
_TRACED: WeakKeyDictionary[nn.Module, list[tuple[Any, Graph | None]]] = WeakKeyDictionary()
STATES = 3
"""So many states of a module are remembered."""


def flat_graph(model: nn.Module, prefix: Graph) -> Graph:
    """Return a prefix's graph with what its modules do in place of them, as far as that can be traced."""
    graph = Graph()
    graph.output(_copied(graph, model, prefix, "", graph.placeholder("images")))
    return graph


def _copied(flat: Graph, model: nn.Module, graph: Graph, name: str, argument: Node) -> Any:
    """Copy a module's graph into a flat one, the modules that it calls in place of their calls; returns its result."""
    copies: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = argument
        elif node.op == "output":
            return map_arg(node.args[0], copies.__getitem__)
        elif node.op in ("call_module", "get_attr"):
            target = f"{name}.{node.target}" if name else str(node.target)
            inner = _inner_graph(model, target, node) if node.op == "call_module" else None
            if inner is None:
                copies[node] = flat.node_copy(node, copies.__getitem__)
                copies[node].target = target
            else:
                copies[node] = _copied(flat, model, inner, target, copies[node.args[0]])
        else:
            copies[node] = flat.node_copy(node, copies.__getitem__)
    return None


def _inner_graph(model: nn.Module, target: str, node: Node) -> Graph | None:
    """Return the graph of a called module that may be replaced by what it does; None where hooks would miss it."""
    module = model.get_submodule(target)
    kind = plain_class(module)
    of_torch = kind.__module__.startswith("torch.nn") and kind is not nn.Sequential
    if of_torch or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
        return None
    if is_observed(module) or "forward" in vars(module) or module_operation(module) is not None:
        return None
    graph = _forward_graph(module, kind)
    result = next(iter(graph.find_nodes(op="output")), None) if graph else None
    return graph if result is not None and isinstance(result.args[0], Node) else None


def _forward_graph(module: nn.Module, kind: Any) -> Graph | None:
    """Return a module's ``forward_graph``, cached until the module or what is in it changes."""
    key, known = (kind, structure(module)), _TRACED.setdefault(module, [])
    graph = next((graph for other, graph in known if other == key), None)
    if graph is None:
        graph = forward_graph(module, kind)
        known[:] = [*known, (key, graph)][-STATES:]
    return graph
