"""Cuts a model's code before its first trained layer into the graphs of the prefix and of the suffix."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from itertools import takewhile
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Graph, Node

from fedact.nn.code import Code, code_of
from fedact.nn.graph import forward_graph
from fedact.nn.layers import LeanAttention, RecomputedSequential, SourceConvolution, Swapped, known_attention
from fedact.nn.streams.block import Block
from fedact.nn.streams.install import StreamEntry, blocks_of
from fedact.nn.streams.pooled import PooledStage
from fedact.nn.streams.pyramid import Pyramid
from fedact.torch_private import InstanceNorm, NormWithStatistics

_SIZES = ("size", "dim", "shape", "ndim", "dtype", "device")


@dataclass(frozen=True, eq=False)
class Suffix:
    """The rest of one module's forward after the cut.

    name: the module's in the model. inputs: by placeholder, the index of its value among the prefix's outputs.
    inner: the placeholder of the next inner module's result, None in the innermost.
    """

    name: str
    graph: Graph
    inputs: dict[Node, int]
    inner: Node | None
    codes: dict[Any, Code] = field(default_factory=dict, init=False, repr=False)

    def code(self, inlined: Mapping[str, tuple[str, ...]]) -> Code:
        """Return the graph as a function (see ``code_of``); the result of the inner module is its first input."""
        return _cached(self.codes, self.graph, inlined)


@dataclass(frozen=True, eq=False)
class Parts:
    """A model's code in two: a graph that returns the prefix's outputs, and the nested suffixes, outermost first."""

    before: Graph
    suffixes: tuple[Suffix, ...]
    codes: dict[Any, Code] = field(default_factory=dict, init=False, repr=False)

    def code(self, inlined: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> Code:
        """Return the prefix as a function of the model and of a list of its input (see ``code_of``)."""
        return _cached(self.codes, self.before, inlined)


def _cached(codes: dict[Any, Code], graph: Graph, inlined: Mapping[str, tuple[str, ...]]) -> Code:
    key = tuple(inlined.items())
    if key not in codes:
        codes[key] = code_of(graph, inlined)
    return codes[key]


def starts_suffix(module: nn.Module) -> bool:
    """Tell whether the suffix begins at this module: it has trainable parameters, or saves its input for a trained layer."""
    if isinstance(module, StreamEntry) and module.stream.is_trained:
        return True
    return isinstance(module, SourceConvolution) or any(
        parameter.requires_grad for parameter in module.parameters(recurse=False)
    )


def parts_of(model: nn.Module) -> Parts | None:
    """Return a model's prefix and suffixes, for calls with one input.

    None where nothing is trained, where nothing runs before the first trained layer, where that code cannot be traced, where
    the cut goes through a block in streams or a pyramid in parts, or where a norm in the prefix computes statistics of the
    batch, so that examples depend on each other.
    """
    cuts = _cuts(model, "")
    if not cuts:
        return None
    parts = _assembled(cuts)
    called = [model.get_submodule(str(node.target)) for node in parts.before.find_nodes(op="call_module")]
    before = {part for module in called for part in module.modules()}
    suffixes = {model.get_submodule(suffix.name) for suffix in parts.suffixes}
    if any(isinstance(module, Pyramid) for module in suffixes):
        return None
    if any(_mixes_examples(part) for part in before) or any(_is_cut(block, before, suffixes) for block in blocks_of(model)):
        return None
    return parts


def _is_cut(block: Block, before: Set[nn.Module], suffixes: Set[nn.Module]) -> bool:
    """Tell whether a block in streams would run in part before a cut, or in a module whose forward its suffix replaces."""
    if before.isdisjoint(block.modules):
        # A pooled map leaves the modules around its convolution as it is, whatever runs of them.
        return not isinstance(block.geometry, PooledStage) and not suffixes.isdisjoint(block.inside)
    return not all(module in before for module in block.modules)


def _mixes_examples(module: nn.Module) -> bool:
    """Tell whether a module is a norm that computes statistics over the examples of a batch."""
    if isinstance(module, Swapped) or not isinstance(module, NormWithStatistics):
        return False
    if module.running_mean is None:
        return not isinstance(module, InstanceNorm)
    return module.training


class _Cut(NamedTuple):
    """A module's forward graph, and the node where its suffix begins: the first trained layer, or the call that runs it."""

    name: str
    graph: Graph
    node: Node

    def before(self) -> list[Node]:
        return list(takewhile(lambda node: node is not self.node, self.graph.nodes))

    def after(self) -> list[Node]:
        return list(self.graph.nodes)[len(self.before()) + 1 :]


def _cuts(module: nn.Module, name: str) -> list[_Cut]:
    """Return the cuts of a module and of the nested modules that it calls at the cut, outermost first.

    The last is the innermost module with any operation before its cut; empty where there is none.
    """
    graph = forward_graph(module, module.plain if isinstance(module, Swapped) else type(module))
    node = next((node for node in graph.nodes if _starts_suffix(node, module)), None) if graph else None
    if graph is None or node is None or not _may_be_cut(module, node):
        return []
    cut = _Cut(name, graph, node)
    called = _called_with_one_input(node, module)
    if called is None or isinstance(module, RecomputedSequential):
        inner = []
    else:
        inner = _cuts(called, joined(name, str(node.target)))
    computes = any(before.op not in ("placeholder", "get_attr") for before in cut.before())
    return [cut, *inner] if computes or inner else []


def _starts_suffix(node: Node, module: nn.Module) -> bool:
    """Tell whether a node runs a layer at which the suffix begins, or reads a trainable parameter itself."""
    if node.op == "call_module":
        return any(starts_suffix(part) for part in module.get_submodule(str(node.target)).modules())
    attributes = {str(source.target) for source in node.all_input_nodes if source.op == "get_attr"}
    parameters = module.named_parameters(remove_duplicate=False) if attributes else ()
    return any(parameter.requires_grad and name in attributes for name, parameter in parameters)


def _may_be_cut(module: nn.Module, node: Node) -> bool:
    """Tell whether a node is a possible cut: in a checkpointed Sequential, only the start of its second segment is."""
    if not isinstance(module, RecomputedSequential):
        return True
    _, *later = module.segments()
    return bool(later) and module.get_submodule(str(node.target)) is later[0][0]


def _called_with_one_input(node: Node, module: nn.Module) -> nn.Module | None:
    """Return the module that a node calls with one input, None where it has no forward of its own to cut."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
        return None
    called = module.get_submodule(str(node.target))
    of_torch = type(called).__module__.startswith("torch.nn") and not isinstance(called, nn.Sequential)
    # Attention calls its layers from code of fedact's.
    of_torch = of_torch or isinstance(called, LeanAttention) or known_attention(called)
    return None if of_torch or not any(True for _ in called.children()) else called


def joined(name: str, child: str) -> str:
    """Return the name of a module's child, from the model's root."""
    return f"{name}.{child}" if name else child


def _assembled(cuts: list[_Cut]) -> Parts:
    """Return the prefix as one graph, of all nodes before the cuts, and every cut's suffix."""
    graph, outputs, suffixes = Graph(), dict[Node, int](), []
    inner_input: Node | None = None
    for cut in cuts:
        copies: dict[Node, Node] = {}
        for node in cut.before():
            if node.op == "placeholder" and inner_input is not None:
                copies[node] = inner_input
                continue
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op in ("call_module", "get_attr"):
                copies[node].target = joined(cut.name, str(node.target))
        suffixes.append(_suffix(cut, copies, outputs, innermost=cut is cuts[-1]))
        inner_input = copies.get(cut.node.all_input_nodes[0])
    graph.output(tuple(outputs))
    return Parts(graph, tuple(suffixes))


def _suffix(cut: _Cut, prefix_nodes: dict[Node, Node], outputs: dict[Node, int], innermost: bool) -> Suffix:
    """Return the suffix at a cut, and add the prefix's values that it reads to ``outputs`` (node of the prefix: index).

    prefix_nodes: by node of the module's graph before the cut, its copy in the prefix's graph.
    """
    graph, copies, inputs = Graph(), dict[Node, Node](), dict[Node, int]()

    def value(node: Node) -> Node:
        if node not in copies and _is_rematerializable(node):
            copies[node] = graph.node_copy(node, value)
        elif node not in copies:
            copies[node] = graph.placeholder(node.name)
            inputs[copies[node]] = outputs.setdefault(prefix_nodes[node], len(outputs))
        return copies[node]

    inner = None if innermost else graph.placeholder("inner")
    copies[cut.node] = graph.node_copy(cut.node, value) if inner is None else inner
    for node in cut.after():
        copies[node] = graph.node_copy(node, value)
    return Suffix(cut.name, graph, inputs, inner)


def _is_rematerializable(node: Node) -> bool:
    """Tell whether the suffix computes a value itself, from parameters, constants and shapes alone.

    Such a value may depend on the batch's size, so it is no output of the prefix; the tensor whose shape is read is one.
    """
    if node.op == "placeholder":
        return False
    name = node.target if node.op == "call_method" else node.args[1] if node.target is getattr else ""
    return name in _SIZES or all(map(_is_rematerializable, node.all_input_nodes))
