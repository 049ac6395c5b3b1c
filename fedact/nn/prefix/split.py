"""The frozen part of a model before its first trained layer, as a part of its own."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from fedact.nn.layers import RecomputedSequential
from fedact.nn.prefix.graph import Parts, Rest, parts_of


@dataclass(frozen=True)
class Split:
    """A model, cut before its first layer that takes part: ``tail(*prefix(x))`` is ``model(x)``, but for the model's hooks.

    The prefix calls the outermost frozen modules. The tail calls all others, also those that have begun in the prefix:
    their hooks see what they return, but no input.
    """

    model: nn.Module
    parts: Parts
    interpreters: dict[tuple[nn.Module, Graph], Interpreter] = field(default_factory=dict, repr=False, compare=False)

    def prefix(self, x: Tensor) -> tuple[Any, ...]:
        """Return the values that cross, without gradients; what is made on the way is freed as soon as it can be."""
        with torch.no_grad():
            return self._run(self.model, self.parts.before, x)  # type: ignore[no-any-return]

    def tail(self, *crossing: Any) -> Any:
        """Return what the model makes of the values that cross."""
        return self.go_on(list(crossing))

    def go_on(self, crossing: list[Any]) -> Any:
        """Return what ``tail`` does, and empty the list at once, so that nothing in it lives for longer than it must."""
        values = [{node: crossing[place] for node, place in rest.takes.items()} for rest in self.parts.rests]
        crossing.clear()
        return self._go_on(list(zip(self.parts.rests, values, strict=True)))

    def _go_on(self, rests: list[tuple[Rest, dict[Node, Any]]]) -> Any:
        """Run the rests: each inner module is called, so that its hooks see it, and runs its own in place of its forward."""
        (rest, values), *inner = rests
        module = self.model.get_submodule(rest.name)
        if rest.inner is not None:
            called = self.model.get_submodule(inner[0][0].name)
            with in_place_of_forward(called, lambda: self._go_on(inner)):
                values[rest.inner] = called()
        if isinstance(module, RecomputedSequential):
            return module.go_on(*values.values())
        return self._run(module, rest.graph, initial_env=values)

    def _run(self, module: nn.Module, graph: Graph, *args: Any, **options: Any) -> Any:
        # An interpreter looks through all modules when it is made.
        if (module, graph) not in self.interpreters:
            self.interpreters[module, graph] = made = Interpreter(module, graph=graph)
            # A layer's own error is the user's to read as it is.
            made.extra_traceback = False
        interpreter = self.interpreters[module, graph]
        try:
            return interpreter.run(*args, **options)
        finally:
            # It would keep what it returned alive.
            interpreter.env = {}


def split(model: nn.Module) -> Split | None:
    """Return a plain or an installed model in two, or None where there is no such cut: see ``cuts.parts_of``."""
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
            return self.split.go_on([_copied(value) for value in values])

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
