"""A model cut in two: its frozen prefix and the suffix from the first trained layer on."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from fedact.nn.layers import RecomputedSequential
from fedact.nn.prefix.graph import Parts, Suffix, parts_of


@dataclass(eq=False)
class Split:
    """A model in two: ``suffix(*prefix(x))`` is ``model(x)``, but for the model's hooks.

    The cut is before the first layer that is trained or keeps its input for one that is. The prefix calls the outermost
    frozen modules. The suffix calls all others, also those that have begun in the prefix: their hooks see what they return,
    but no input. It remembers the interpreter of each graph that it has run.
    """

    model: nn.Module
    parts: Parts
    _interpreters: dict[tuple[nn.Module, Graph], Interpreter] = field(default_factory=dict, init=False, repr=False)

    def prefix(self, x: Tensor) -> tuple[Any, ...]:
        """Return the frozen prefix's outputs, without gradients; tensors on the way are freed as soon as they can be."""
        with torch.no_grad():
            return self._run(self.model, self.parts.before, x)  # type: ignore[no-any-return]

    def suffix(self, *outputs: Any) -> Any:
        """Return the model's output for the prefix's outputs."""
        return self.run_suffix(list(outputs))

    def run_suffix(self, outputs: list[Any]) -> Any:
        """Return what ``suffix`` does, and empty the list at once, so that nothing in it lives for longer than it must."""
        values = [{node: outputs[place] for node, place in suffix.takes.items()} for suffix in self.parts.suffixes]
        outputs.clear()
        return self._run_suffixes(list(zip(self.parts.suffixes, values, strict=True)))

    def _run_suffixes(self, suffixes: list[tuple[Suffix, dict[Node, Any]]]) -> Any:
        """Run the suffixes: each inner module is called, so that its hooks run, with its suffix in place of its forward."""
        (suffix, values), *inner = suffixes
        module = self.model.get_submodule(suffix.name)
        if suffix.inner is not None:
            called = self.model.get_submodule(inner[0][0].name)
            with in_place_of_forward(called, lambda: self._run_suffixes(inner)):
                values[suffix.inner] = called()
        if isinstance(module, RecomputedSequential):
            return module.run_later_segments(*values.values())
        return self._run(module, suffix.graph, initial_env=values)

    def _run(self, module: nn.Module, graph: Graph, *args: Any, **options: Any) -> Any:
        # An interpreter looks through all modules when it is made.
        if (module, graph) not in self._interpreters:
            self._interpreters[module, graph] = made = Interpreter(module, graph=graph)
            # A layer's own error is the user's to read as it is.
            made.extra_traceback = False
        interpreter = self._interpreters[module, graph]
        try:
            return interpreter.run(*args, **options)
        finally:
            # It would keep what it returned alive.
            interpreter.env = {}


def split(model: nn.Module) -> Split | None:
    """Return a plain or an installed model in two, or None where it cannot be cut: see ``graph.parts_of``."""
    parts = parts_of(model)
    return None if parts is None else Split(model, parts)


@dataclass(frozen=True, eq=False)
class PrefixOutputs:
    """What a model's frozen prefix made of a batch, from which the model goes on in place of the images.

    values: the prefix's outputs, examples first.
    """

    split: Split
    values: tuple[Any, ...]

    def __getitem__(self, part: slice) -> Self:
        return replace(self, values=tuple(value[part] for value in self.values))

    def under(self, model: nn.Module) -> Self:
        """Return the same outputs for another model with the same weights that is cut at the same place."""
        return self if model is self.split.model else replace(self, split=Split(model, self.split.parts))

    def scores(self) -> Tensor:
        """Return the model's output for the batch; the values stay as they are."""

        def suffix(*values: Any) -> Any:
            # Copied here, as the prefix would make them: the copies are the step's, and gone as soon as they can be.
            return self.split.run_suffix([_copied(value) for value in values])

        with in_place_of_forward(self.split.model, suffix):
            return self.split.model(*self.values)  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    return value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else copy.deepcopy(value)


@contextmanager
def in_place_of_forward(module: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Let a call of the module run something else than its forward."""
    own = vars(module).get("forward")
    module.forward = run
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
