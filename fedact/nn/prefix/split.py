"""A model split into its frozen prefix and its suffix, which goes on from the prefix's outputs."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from fedact.nn.blocks import inlined
from fedact.nn.layers import RecomputedSequential
from fedact.nn.prefix.graph import Parts, Suffix, joined, parts_of
from fedact.nn.streams.block import RestOfForward
from fedact.nn.streams.install import in_streams


@dataclass(eq=False)
class Split:
    """A model in two: ``suffix(*prefix(x))`` is ``model(x)``, but for the model's hooks.

    The cut is before the first layer that is trained, or saves its input for a trained one. The prefix calls the outermost
    frozen modules. The suffix calls all others, also those with a part in the prefix: their hooks get the output, but no
    input.
    """

    model: nn.Module
    parts: Parts

    def prefix(self, x: Tensor) -> tuple[Any, ...]:
        """Return the frozen prefix's outputs, without gradients; intermediate tensors are freed after their last use."""
        with torch.no_grad(), in_streams(*self._cut_modules):
            return self.parts.code(self._inlined())(self.model, [x])  # type: ignore[no-any-return]

    def suffix(self, *outputs: Any) -> Any:
        """Return the model's output for the prefix's outputs."""
        return self.run_suffix(list(outputs))

    def run_suffix(self, outputs: list[Any]) -> Any:
        """Return ``suffix(*outputs)``, and empty the list, so that the outputs can be freed while the suffix runs."""
        values = [[outputs[place] for place in suffix.inputs.values()] for suffix in self.parts.suffixes]
        outputs.clear()
        with in_streams(*self._cut_modules):
            return self._run_suffixes(list(zip(self.parts.suffixes, values, strict=True)))

    def _inlined(self) -> dict[str, tuple[str, ...]]:
        """Return the Sequentials of the prefix whose children are called in their place, as in the whole model."""
        cut = zip(self.parts.suffixes, self._cut_modules, strict=True)
        return {joined(suffix.name, name): called for suffix, module in cut for name, called in inlined(module).items()}

    @cached_property
    def _cut_modules(self) -> list[nn.Module]:
        """The modules that the cut goes through: none of them is called whole, as blocks in streams have to be."""
        return [self.model.get_submodule(suffix.name) for suffix in self.parts.suffixes]

    def _run_suffixes(self, suffixes: list[tuple[Suffix, list[Any]]]) -> Any:
        """Run the suffixes: each inner module is called, so that its hooks run, with its suffix in place of its forward."""
        (suffix, values), *inner = suffixes
        module = self.model.get_submodule(suffix.name)
        if suffix.inner is not None:
            called = self.model.get_submodule(inner[0][0].name)
            with in_place_of_forward(called, RestOfForward(lambda: self._run_suffixes(inner))):
                values.insert(0, called())
        if isinstance(module, RecomputedSequential):
            return module.run_later_segments(*values)
        return suffix.code(inlined(module))(module, values)


def split(model: nn.Module) -> Split | None:
    """Return the split of a plain or installed model, None where it cannot be cut (see ``graph.parts_of``)."""
    parts = parts_of(model)
    return None if parts is None else Split(model, parts)


@dataclass(frozen=True, eq=False)
class PrefixOutputs:
    """The outputs of a model's frozen prefix for a batch, which replace the images as the model's input.

    values: the prefix's outputs, examples first.
    """

    split: Split
    values: tuple[Any, ...]

    def __getitem__(self, part: slice) -> Self:
        return replace(self, values=tuple(value[part] for value in self.values))

    def under(self, model: nn.Module) -> Self:
        """Return these outputs as the input of another model with the same weights and the same cut."""
        return self if model is self.split.model else replace(self, split=Split(model, self.split.parts))

    def scores(self) -> Tensor:
        """Return the model's output for the batch; the stored values are not changed."""

        def suffix(*values: Any) -> Any:
            # Copies, like fresh outputs of the prefix: the step may change them, and frees them after their last use.
            return self.split.run_suffix(
                [
                    value.clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else copy.deepcopy(value)
                    for value in values
                ]
            )

        with in_place_of_forward(self.split.model, suffix):
            return self.split.model(*self.values)  # type: ignore[no-any-return]


@contextmanager
def in_place_of_forward(module: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Within this context, make a call of the module run ``run`` instead of its forward."""
    # Not by setattr, which searches a module's parameters, buffers and modules first.
    attributes = vars(module)
    override = attributes.get("forward")
    attributes["forward"] = run
    try:
        yield
    finally:
        if override is None:
            del attributes["forward"]
        else:
            attributes["forward"] = override
