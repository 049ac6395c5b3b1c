"""A torch.fx graph as a Python function that frees values after their last use, and lets layers write over the last."""

from collections.abc import Callable, Mapping, Sequence
from operator import add
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fedact.nn.layers.frozen import FrozenNorm
from fedact.nn.layers.function import runs_plain
from fedact.nn.layers.fused import gelu_over, is_layer_itself, is_plain_convolution, is_plain_linear
from fedact.torch_private import is_observed

Code = Callable[[nn.Module, list[Any]], Any]
"""A graph as a function of a module and of a list of its inputs, which it empties."""


def code_of(graph: Graph, inlined: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Code:
    """Return a graph as one Python function: several times as fast as ``torch.fx.Interpreter``.

    Every value is freed after its last use, an input too. Over what nothing else reads a frozen norm writes a convolution's
    output, and GELU a linear layer's. inlined: Sequentials with the names of their children, which are called in their
    place: a call of a Sequential would keep its input until it is done.
    """
    emptied, copies = Graph(), dict[Node, Node]()
    values = emptied.placeholder("values")
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = emptied.call_method("pop", (values, 0))
        elif node.op == "call_module" and str(node.target) in inlined:
            value, last = copies[node.all_input_nodes[0]], ""
            for child in (f"{node.target}.{name}" for name in inlined[str(node.target)]):
                if not last:
                    value = emptied.call_module(child, (value,))
                else:
                    value = emptied.call_function(run_after, (emptied.get_attr(last), emptied.get_attr(child), value))
                last = child
            copies[node] = value
        elif (before := _only_source(node)) is not None:
            if str(before.target) in inlined:
                copies[node] = emptied.node_copy(node, copies.__getitem__)
                continue
            source, *others = [emptied.get_attr(str(each.target)) for each in (before, node) if each.op == "call_module"]
            if others:
                copies[node] = emptied.call_function(run_after, (source, *others, copies[before]))
            else:
                copies[node] = emptied.call_function(add_after, (source, *(copies[term] for term in node.args)))
        else:
            copies[node] = emptied.node_copy(node, copies.__getitem__)
    # Only the function is wanted, which finds its modules in the one that it is called with.
    named = {str(node.target): nn.Identity() for node in emptied.nodes if node.op in ("call_module", "get_attr")}
    return type(GraphModule(named, emptied)).forward


def _only_source(node: Node) -> Node | None:
    """Return the call of a module whose output a node alone reads, another module's call or a sum; None for other nodes."""
    is_sum = node.op == "call_function" and node.target is add and all(isinstance(term, Node) for term in node.args)
    is_call = node.op == "call_module" and len(node.args) == 1
    before = node.args[0] if (is_sum or is_call) and not node.kwargs else None
    return before if isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1 else None


def run_after(before: nn.Module, module: nn.Module, x: Any) -> Any:
    """Return a module's output for x, which is another module's output, and which nothing else reads."""
    if isinstance(module, FrozenNorm) and isinstance(x, Tensor) and is_plain_convolution(before):
        return module(x, is_layer_itself(module) and not is_observed(module))
    if isinstance(module, nn.GELU) and isinstance(x, Tensor) and is_plain_linear(before):
        return gelu_over(x, module)
    return module(x)


def add_after(before: nn.Module, x: Any, y: Any) -> Any:
    """Return a sum, in x where that is a frozen norm's output, which nothing else reads or has saved."""
    if isinstance(before, FrozenNorm) and is_layer_itself(before) and not is_observed(before):
        tensors = isinstance(x, Tensor) and isinstance(y, Tensor) and x is not y
        if tensors and x.shape == y.shape and x.dtype == y.dtype and not (x._is_view() or runs_plain()):
            return x.add_(y)
    return x + y
