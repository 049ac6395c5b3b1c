"""Where a model's code is cut before its first trained layer, and the graphs of what lies before and after."""

from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from torch import nn
from torch.fx import Graph, Node

from fedact.nn.graph import own_code
from fedact.nn.layers import RecomputedSequential, SourceConv2d, Swapped
from fedact.torch_private import InstanceNorm, NormWithStatistics

_SIZES = ("size", "dim", "shape", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Suffix:
    """What one module still does from the cut on.

    name: the module's in the model. takes: the place, among the prefix's outputs, of what each placeholder stands for.
    inner: the placeholder of what the next inner module returns, None where there is none.
    """

    name: str
    graph: Graph
    takes: dict[Node, int]
    inner: Node | None


class Parts(NamedTuple):
    """A model's code in two: a graph that returns the prefix's outputs, and the suffixes, the model's own first."""

    before: Graph
    suffixes: tuple[Suffix, ...]


def starts_suffix(module: nn.Module) -> bool:
    """Return whether a module is trained, or keeps its input for one that is: the suffix begins at the first of them."""
    return isinstance(module, SourceConv2d) or any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def parts_of(model: nn.Module) -> Parts | None:
    """Return a model's parts as it is now, for calls with one input.

    None where nothing is trained or the first trained layer takes the input itself, where the code that leads there cannot
    be traced, or where a norm before it takes its statistics from the batch, so that no example stands alone.
    """
    cuts = _cuts(model, "")
    if not cuts:
        return None
    parts = _assembled(cuts)
    called = [model.get_submodule(str(node.target)) for node in parts.before.find_nodes(op="call_module")]
    return None if any(_mixes_examples(each) for module in called for each in module.modules()) else parts


def _mixes_examples(module: nn.Module) -> bool:
    if isinstance(module, Swapped) or not isinstance(module, NormWithStatistics):
        return False
    if module.running_mean is None:
        return not isinstance(module, InstanceNorm)
    return module.training


class _Cut(NamedTuple):
    """A module's own code, and the node where its suffix begins: the first such layer, or the call that leads there."""

    name: str
    graph: Graph
    node: Node

    def before(self) -> list[Node]:
        return list(takewhile(lambda node: node is not self.node, self.graph.nodes))

    def after(self) -> list[Node]:
        return list(self.graph.nodes)[len(self.before()) + 1 :]


def _cuts(module: nn.Module, name: str) -> list[_Cut]:
    """Return where a module's code is cut, then where the code of the module that it calls there is, and so on inwards.

    Ends with the innermost in which anything runs before; empty where nothing does.
    """
    graph = own_code(module, module.plain if isinstance(module, Swapped) else type(module))
    node = next((node for node in graph.nodes if _starts_suffix(node, module)), None) if graph else None
    if graph is None or node is None or not _may_be_cut(module, node):
        return []
    cut = _Cut(name, graph, node)
    called = _called_with_one_input(node, module)
    inner = [] if called is None or isinstance(module, RecomputedSequential) else _cuts(called, _joined(name, node))
    works = any(each.op not in ("placeholder", "get_attr") for each in cut.before())
    return [cut, *inner] if works or inner else []


def _starts_suffix(node: Node, module: nn.Module) -> bool:
    """Return whether a node runs a layer at which the suffix may begin, or itself takes a trained parameter."""
    if node.op == "call_module":
        return any(starts_suffix(each) for each in module.get_submodule(str(node.target)).modules())
    attributes = {str(each.target) for each in node.all_input_nodes if each.op == "get_attr"}
    parameters = module.named_parameters(remove_duplicate=False) if attributes else ()
    return any(parameter.requires_grad and name in attributes for name, parameter in parameters)


def _may_be_cut(module: nn.Module, node: Node) -> bool:
    """Tell whether a module that runs in segments begins its second one, whose input it keeps, at a node."""
    if not isinstance(module, RecomputedSequential):
        return True
    _, *later = module.segments()
    return bool(later) and module.get_submodule(str(node.target)) is later[0][0]


def _called_with_one_input(node: Node, module: nn.Module) -> nn.Module | None:
    """Return the module that a node calls, where its own code can be looked into."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
        return None
    called = module.get_submodule(str(node.target))
    torchs = type(called).__module__.startswith("torch.nn") and not isinstance(called, nn.Sequential)
    return None if torchs or not any(True for _ in called.children()) else called


def _joined(name: str, node: Node) -> str:
    return f"{name}.{node.target}" if name else str(node.target)


def _assembled(cuts: list[_Cut]) -> Parts:
    """Return one graph of all that runs before the cuts, and the suffix at each."""
    graph, outputs, suffixes = Graph(), dict[Node, int](), []
    given: Node | None = None
    for cut in cuts:
        made: dict[Node, Node] = {}
        for node in cut.before():
            if node.op == "placeholder" and given is not None:
                made[node] = given
                continue
            made[node] = graph.node_copy(node, made.__getitem__)
            if node.op in ("call_module", "get_attr"):
                made[node].target = _joined(cut.name, node)
        suffixes.append(_suffix(cut, made, outputs, innermost=cut is cuts[-1]))
        given = made.get(cut.node.all_input_nodes[0])
    graph.output(tuple(outputs))
    return Parts(graph, tuple(suffixes))


def _suffix(cut: _Cut, made: dict[Node, Node], outputs: dict[Node, int], innermost: bool) -> Suffix:
    """Return the suffix of a module's code; what it takes from before is added to the prefix's outputs.

    made: what stands for a node of the module's own graph in the graph of what runs before.
    """
    graph, own, takes = Graph(), dict[Node, Node](), dict[Node, int]()

    def value(node: Node) -> Node:
        if node not in own and _can_be_made_again(node):
            own[node] = graph.node_copy(node, value)
        elif node not in own:
            own[node] = graph.placeholder(node.name)
            takes[own[node]] = outputs.setdefault(made[node], len(outputs))
        return own[node]

    inner = None if innermost else graph.placeholder("inner")
    own[cut.node] = graph.node_copy(cut.node, value) if inner is None else inner
    for node in cut.after():
        own[node] = graph.node_copy(node, value)
    return Suffix(cut.name, graph, takes, inner)


def _can_be_made_again(node: Node) -> bool:
    """Tell whether a value follows from parameters, constants and shapes alone.

    For a part of a batch it may be another: its number of examples, say. What the shape is of is an output in its place.
    """
    if node.op == "placeholder":
        return False
    name = node.target if node.op == "call_method" else node.args[1] if node.target is getattr else ""
    return name in _SIZES or all(_can_be_made_again(each) for each in node.all_input_nodes)
