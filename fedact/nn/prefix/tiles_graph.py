"""A frozen prefix as a list of steps on numbered values, the images first, with the shape of every value."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fedact.nn.prefix.tiles_operations import (
    Operation,
    Pointwise,
    Same,
    Streamed,
    Sum,
    Windowed,
    function_operation,
    module_operation,
    plain_class,
)
from fedact.torch_private import is_observed, storage_address, without_dispatch_modes

IMAGES = 0
"""The number of the value that the prefix is given."""


class MapShape(NamedTuple):
    """The shape of one example's maps."""

    channels: int
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.channels * self.rows * self.columns


class Memory(NamedTuple):
    """A storage behind the result of unknown code: a value's (origin), or a new one of so many bytes an example."""

    origin: int | None
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class Step:
    """One operation. inputs, output: numbers of values. operation: None for what is run as the model's code has it.

    then: maps that alone read its result, and are written into it. memories: of the result of unknown code, if known.
    """

    node: Node
    operation: Windowed | Pointwise | Sum | Streamed | None
    inputs: tuple[int, ...]
    output: int
    then: tuple[Pointwise, ...] = ()
    memories: tuple[Memory, ...] = ()

    def run(self, model: nn.Module, values: Sequence[Any]) -> Any:
        """Return the result of the model's own code; values: its inputs'."""
        return _called(model, self.node, dict(zip(self.node.all_input_nodes, values, strict=True)).__getitem__)


@dataclass(frozen=True, eq=False)
class Steps:
    """A prefix for images of one shape.

    shapes: by value, None where unknown. outputs: the values that it returns. exposed: the values that unknown code reads or
    returns, which may be views of each other. known: whether the bytes of all results are.
    """

    steps: tuple[Step, ...]
    shapes: tuple[MapShape | None, ...]
    outputs: tuple[int, ...]
    exposed: frozenset[int]
    known: bool

    @property
    def local(self) -> int:
        """The number of leading steps that are local in space."""
        return next((n for n, step in enumerate(self.steps) if step.operation is None), len(self.steps))

    def shape(self, value: int) -> MapShape:
        """Return the shape of a value of a local step."""
        shape = self.shapes[value]
        assert shape is not None
        return shape


def steps_of(model: nn.Module, graph: Graph, shape: MapShape, dtype: torch.dtype) -> Steps:
    """Return the steps of a flat graph for images of this shape and type."""
    # A dispatch mode would see tensors that have no memory.
    with without_dispatch_modes():
        return _Lowering(model, graph, shape, dtype).steps()


class _Lowering:
    """The steps of a flat graph, made one after the other."""

    def __init__(self, model: nn.Module, graph: Graph, shape: MapShape, dtype: torch.dtype) -> None:
        self.model, self.graph, self.dtype = model, graph, dtype
        self.numbers: dict[Node, int] = {}
        self.shapes: list[MapShape | None] = [shape]
        # Tensors without memory, to learn what unknown code returns.
        self.metas: list[Any] = [self._meta(shape)]
        self.exposed, self.known = {IMAGES}, True
        self.made: list[Step] = []

    def steps(self) -> Steps:
        """Return the steps of the graph."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.numbers[node] = IMAGES
            elif node.op == "output":
                outputs = tuple(self.numbers[each] for each in node.args[0])
            else:
                self._add(node)
        made = _joined(self.made, self.exposed | set(outputs))
        return Steps(made, tuple(self.shapes), outputs, frozenset(self.exposed), self.known)

    def _add(self, node: Node) -> None:
        operation = self._operation(node)
        inputs = tuple(self.numbers[each] for each in node.all_input_nodes)
        if isinstance(operation, Same):
            self.numbers[node] = inputs[0]
            return
        shape = None if operation is None else _shape(operation, [self.shapes[value] for value in inputs])
        if operation is None or shape is None or (_changes_input(operation) and inputs[0] in self.exposed):
            self._add_unknown(node, inputs)
            return
        self.made.append(Step(node, operation, inputs, len(self.shapes)))
        self._number(node, shape, self._meta(shape))
        if _changes_input(operation):
            # Whoever reads the input from now on finds the output there.
            self.numbers |= {each: self.numbers[node] for each, value in self.numbers.items() if value == inputs[0]}

    def _operation(self, node: Node) -> Operation | None:
        if node.op != "call_module":
            return function_operation(node) if node.op in ("call_function", "call_method") else None
        plain = len(node.args) == len(node.all_input_nodes) == 1 and not node.kwargs
        return module_operation(self.model.get_submodule(str(node.target))) if plain else None

    def _add_unknown(self, node: Node, inputs: tuple[int, ...]) -> None:
        meta = self._run_without_memory(node)
        origins = {_address(each): value for value, each in enumerate(self.metas) if isinstance(each, Tensor)}
        leaves = meta if isinstance(meta, (tuple, list)) else [meta]
        storages = {_address(leaf): leaf.untyped_storage().nbytes() for leaf in leaves if isinstance(leaf, Tensor)}
        memories = tuple(
            Memory(origins[place]) if place in origins else Memory(None, size) for place, size in storages.items()
        )
        self.made.append(Step(node, None, inputs, len(self.shapes), memories=() if node.op == "get_attr" else memories))
        self.exposed |= {*inputs, len(self.shapes)}
        four = isinstance(meta, Tensor) and meta.dim() == 4 and len(meta) == 1 and node.op != "get_attr"
        self._number(node, MapShape(*meta.shape[1:]) if four else None, meta)

    def _number(self, node: Node, shape: MapShape | None, meta: Any) -> None:
        self.numbers[node] = len(self.shapes)
        self.shapes.append(shape)
        self.metas.append(meta)

    def _meta(self, shape: MapShape) -> Tensor:
        return torch.empty((1, *shape), dtype=self.dtype, device="meta")

    def _run_without_memory(self, node: Node) -> Any:
        """Return what a node returns, as tensors without memory; None where code other than PyTorch's would run."""
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.model).to("meta")
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            kind = plain_class(module)
            observed = any(is_observed(each) for each in module.modules())
            if observed or not kind.__module__.startswith("torch.nn") or "forward" in vars(module):
                self.known = False
                return None
        try:
            with torch.no_grad():
                return _called(self.model, node, lambda each: self.metas[self.numbers[each]], meta=True)
        except Exception:
            # Any code may run here, and have no way to run without memory.
            self.known = False
            return None


def _joined(steps: Sequence[Step], others: Collection[int]) -> tuple[Step, ...]:
    """Return the steps, each joined with the maps of its result that may be in place; others: values also read elsewhere."""
    readers = Counter(value for step in steps for value in step.inputs)
    joined, places = list[Step](), dict[int, int]()
    for step in steps:
        operation, place = step.operation, places.get(step.inputs[0]) if step.inputs else None
        if (
            isinstance(operation, Pointwise)
            and operation.run_in_place is not None
            and place is not None
            and (before := joined[place]).operation is not None
            and readers[step.inputs[0]] == 1
            and step.inputs[0] not in others
        ):
            joined[place] = replace(before, node=step.node, output=step.output, then=(*before.then, operation))
        else:
            place = len(joined)
            joined.append(step)
        places[step.output] = place
    return tuple(joined)


def _called(model: nn.Module, node: Node, value: Callable[[Node], Any], meta: bool = False) -> Any:
    """Return what a node of a graph returns; value: of its inputs. meta: with weights without memory."""
    if node.op == "get_attr":
        return attrgetter(str(node.target))(model)
    args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_function":
        return node.target(*args, **kwargs)  # type: ignore[operator]
    module = model.get_submodule(str(node.target))
    if not meta:
        return module(*args, **kwargs)
    tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    return functional_call(module, tensors, args, kwargs)


def _shape(operation: Operation, shapes: Sequence[MapShape | None]) -> MapShape | None:
    """Return the shape of an operation's output; None where it is unknown, or the operation is not local on these."""
    first = shapes[0]
    if first is None or any(shape != first for shape in shapes):
        return None
    if not isinstance(operation, Windowed):
        return first
    rows, columns = (window.size(size) for window, size in zip(operation.axes, first[1:], strict=True))
    return MapShape(operation.channels(first.channels), rows, columns) if rows > 0 and columns > 0 else None


def _changes_input(operation: Operation) -> bool:
    return isinstance(operation, Pointwise | Sum) and operation.changes_input


def _address(tensor: Tensor) -> int:
    return storage_address(tensor.untyped_storage())
