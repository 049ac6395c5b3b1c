"""The gradient path to a network's trained layers: the modules on it, and the functions that forward code calls itself."""

from collections import Counter
from collections.abc import Collection, Iterable

from torch import nn
from torch.fx import Graph, Node

from fedact.nn.graph import is_product, named_modules, operation_name, traced

KEEPERS = frozenset(
    (
        "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
        "hardtanh", "softplus", "sigmoid", "tanh", "softmax", "log_softmax", "layer_norm", "group_norm", "instance_norm",
        "batch_norm", "rms_norm", "normalize", "scaled_dot_product_attention", "multi_head_attention_forward", "matmul",
        "bmm", "einsum", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    )
)  # fmt: skip
"""Functions and methods for which autograd saves tensors of the size of their input or output."""


def downstream(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the names of the modules on the gradient path to these modules, themselves included.

    For a model that cannot be traced: all modules that are defined after the first of them.
    """
    graph, first, order = traced(model), set(names), list(dict(named_modules(model)))
    if graph is None:
        return set(order[min((order.index(name) for name in first), default=len(order)) :])
    return first | {str(node.target) for node in _reached(graph, first) if node.op == "call_module"}


def _reached(graph: Graph, first: set[str]) -> list[Node]:
    """Return the nodes of these modules, and those that depend on them."""
    reached: dict[Node, None] = {}
    unseen = first - {str(node.target) for node in graph.find_nodes(op="call_module")}
    for node in graph.nodes:
        starts = node.op == "call_module" and (node.target in first or _holds(str(node.target), unseen))
        if starts or not reached.keys().isdisjoint(node.all_input_nodes):
            reached[node] = None
    return [*reached]


def _holds(module: str, names: set[str]) -> bool:
    """Tell whether a module that the tracer did not look into holds one of these."""
    return any(name.startswith(f"{module}.") for name in names)


def keeping_functions(
    model: nn.Module, names: Iterable[str], exact: Collection[str], replaced: Collection[str]
) -> Counter[str]:
    """Return how often forward code on the gradient path to these modules calls functions that make autograd keep tensors.

    Left out are those whose output others save in any case: products of two tensors, and the layers ``exact``; and what is
    called in modules that are ``replaced`` whole. Empty for a model that cannot be traced.
    """
    graph = traced(model)
    nodes = _reached(graph, set(names)) if graph else []

    def saves_it(user: Node) -> bool:
        return user.target in exact if user.op == "call_module" else is_product(user)

    called = [(operation_name(node), node) for node in nodes if node.op in ("call_function", "call_method")]
    keeping = [(name, node) for name, node in called if name in KEEPERS and not all(map(saves_it, node.users))]
    return Counter(name for name, node in keeping if not node.meta.get("nn_module_stack", {}).keys() & replaced)


def as_text(called: Counter[str]) -> list[str]:
    """Return the functions in words: ``softmax in forward (3 times)``.

    >>> as_text(Counter(softmax=3, gelu=1))
    ['softmax in forward (3 times)', 'gelu in forward']
    """
    return [f"{name} in forward" + (f" ({count} times)" if count > 1 else "") for name, count in called.items()]
