"""The frozen part of a model before its first trained layer, as a part of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node

from fedact.cuts import Parts, Rest, parts_of
from fedact.layers import RecomputedSequential


@dataclass(frozen=True)
class Split:
    """A model, cut before its first layer that takes part: ``tail(*prefix(x))`` is ``model(x)``, but for the model's hooks.

    The prefix calls the outermost frozen modules. The tail calls all others, also those that have begun in the prefix:
    their hooks see what they return, but no input.
    """

    model: nn.Module
    parts: Parts

    def prefix(self, x: Tensor) -> tuple[Any, ...]:
        """Return the values that cross, without gradients; what is made on the way is freed as soon as it can be."""
        with torch.no_grad():
            return _interpreter(self.model, self.parts.before).run(x)  # type: ignore[no-any-return]

    def tail(self, *crossing: Any) -> Any:
        """Return what the model makes of the values that cross."""
        return self.go_on(list(crossing))

    def go_on(self, crossing: list[Any]) -> Any:
        """Return what ``tail`` does, and empty the list at once, so that nothing in it lives for longer than it must."""
        values = [{node: crossing[place] for node, place in rest.takes.items()} for rest in self.parts.rests]
        crossing.clear()
        return _go_on(self.model, list(zip(self.parts.rests, values, strict=True)))


def split(model: nn.Module) -> Split | None:
    """Return a plain or an installed model in two, or None where there is no such cut: see ``cuts.parts_of``."""
    parts = parts_of(model)
    return None if parts is None else Split(model, parts)


def _interpreter(module: nn.Module, graph: Graph) -> Interpreter:
    interpreter = Interpreter(module, graph=graph)
    # A layer's own error is the user's to read as it is.
    interpreter.extra_traceback = False
    return interpreter


def _go_on(model: nn.Module, rests: list[tuple[Rest, dict[Node, Any]]]) -> Any:
    """Run the rests: each inner module is called, so that its hooks see it, and runs its own in the place of its forward."""
    (rest, values), *inner = rests
    module = model.get_submodule(rest.name)
    if rest.inner is not None:
        called = model.get_submodule(inner[0][0].name)
        with in_place_of_forward(called, lambda: _go_on(model, inner)):
            values[rest.inner] = called()
    if isinstance(module, RecomputedSequential):
        return module.go_on(*values.values())
    return _interpreter(module, rest.graph).run(initial_env=values)


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
