"""What a plan is made for, and the measured memory of a step under given methods."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedact.compression import AUTO, Method
from fedact.config.errors import ConfigError
from fedact.config.updates import WHOLE as WHOLE_LAYERS
from fedact.measure.memory import Memory
from fedact.models.tasks import Loss
from fedact.nn.body import is_example_norm, is_trainable_norm, light_layers
from fedact.nn.restoration import uninstall
from fedact.nn.surgery import (
    body_layers,
    head,
    layer_inputs,
    restore,
    trained_layers,
)
from fedact.planner.example_check import called_modules
from fedact.training.step_bytes import bytes_in_scope

Methods = Mapping[str, Method]
"""The method of each saved input, by layer."""
REACHES = (3, 5)
"""How many convolutions back a plan that is free to looks for an input to make others again from."""


class PrefixSchedule(NamedTuple):
    """How a frozen prefix runs: ``chunk`` examples at a time, 0 for all, and in ``tiles`` along each axis, 0 for none."""

    chunk: int = 0
    tiles: int = 0


WHOLE = PrefixSchedule()
"""All examples at once, on whole maps."""


class Schedule(NamedTuple):
    """One way to run a batch. room: bytes for the wide maps of blocks in streams, None for the fast engine."""

    micro_batch: int
    recompute: int
    room: int | None = None

    @property
    def in_streams(self) -> bool:
        """Whether blocks run in streams."""
        return self.room is not None

    @property
    def kind(self) -> tuple[int, float]:
        """What schedules of other micro-batches have alike: the recompute, and the room of an example, infinity for None."""
        return self.recompute, inf if self.room is None else self.room / self.micro_batch

    def asks_as_much(self, other: "Schedule") -> bool:
        """Tell whether this one takes at least as many bytes as another of the same kind."""
        alike = (self.in_streams, self.recompute) == (other.in_streams, other.recompute)
        return alike and self.micro_batch >= other.micro_batch and self.kind >= other.kind


@dataclass(frozen=True, eq=False)
class Problem:
    """What a plan is made for; the model is a copy that may be changed.

    x, y: a whole batch. method: "auto" or a given one. budget: bytes in the scope ("saved" or "peak"), None for no bound.
    called: names of the modules that the model calls; others train nothing. momentum: whether the optimizer has any.
    recompute: "auto" or a given one, for methods that have none of their own. room: bytes for the wide maps of a block, of
    steps that run in streams; None for the fast engine. update: what of the trained layers is trained; under another than
    whole layers, and with norms of each example's, the model is adapted for one depth (see ``adapted_depths``).
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    method: Method | str
    budget: int | None
    scope: str
    loss: Loss
    called: frozenset[str]
    momentum: bool = False
    train_norm: bool = False
    recompute: int | str = "auto"
    room: int | None = None
    update: str = WHOLE_LAYERS
    _inputs: dict[tuple[frozenset[str], int], dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def example_norms(self) -> bool:
        """Whether norms of each example's are trained, where they come after a trained layer."""
        return self.train_norm and any(is_example_norm(each) and is_trainable_norm(each) for each in self.model.modules())

    @property
    def is_adapted(self) -> bool:
        """Whether what is trained of layers is noted on the model, for one depth."""
        return self.update != WHOLE_LAYERS or self.example_norms

    @property
    def recomputes(self) -> tuple[int, ...]:
        """How many convolutions back inputs may be made again from, what is preferred first."""
        method = self.method
        if isinstance(method, Method) and method.recomputing(1) is method:
            return (method.recompute,)
        if isinstance(self.recompute, int):
            return (self.recompute,)
        return REACHES if method == AUTO else (0, *REACHES)

    @property
    def least_recomputes(self) -> tuple[int, ...]:
        """The same with nothing made again first, where that was left to the plan."""
        return tuple(dict.fromkeys([0, *self.recomputes])) if self.recompute == "auto" else self.recomputes

    @property
    def batch_size(self) -> int:
        return len(self.y)

    @property
    def plain_model(self) -> nn.Module:
        """The model without any methods, with what an update added to its layers."""
        return uninstall(self.model)

    def trained(self, depth: int) -> list[str]:
        """Return the names of the layers that are trained at a depth, a number of convolutions.

        Raises ConfigError where the model has fewer, or calls none of them.
        """
        if not (trained := self._called_layers(depth)):
            raise ConfigError("the model calls none of the layers that would be trained")
        return trained

    def reached_from(self, depth: int) -> list[str]:
        """Return the names of the layers that the gradient path of a depth leads to, also those that keep no input."""
        return [*self.trained(depth), *light_layers(self.model)]

    def _called_layers(self, depth: int) -> list[str]:
        return [name for name in trained_layers(self.model, depth, self.train_norm) if name in self.called]

    def trained_in_order(self, depth: int) -> list[str]:
        """Return the names of the trained layers in the order of their definition in the model."""
        trained = set(self.trained(depth))
        return [name for name, _ in self.model.named_modules() if name in trained]

    def depths(self, layers: int | str) -> range:
        """Return the depths that may be trained, besides the head alone.

        Raises ConfigError for what is no number of layers, or not one of this model.
        """
        if layers != "auto" and (isinstance(layers, bool) or not isinstance(layers, int)):
            raise ConfigError(f"layers is a whole number or auto, not {layers!r}")
        if not body_layers(self.model) and not head(self.model):
            raise ConfigError("the model has neither a convolution nor a linear layer that could be trained")
        if layers != "auto":
            self.trained(int(layers))
            return range(int(layers), int(layers) + 1)
        most = len(body_layers(self.model))
        self.trained(most)
        return range(next(depth for depth in range(min(1, most), most + 1) if self._called_layers(depth)), most + 1)

    @property
    def has_head(self) -> bool:
        """Whether the head alone can be trained."""
        return bool(self.called.intersection(head(self.model)))

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the first examples (inputs, labels), each tensor alone in its storage, as a client's are."""
        # Not views of the whole batch: those would be counted with it.
        x, y = self.x[:count], self.y[:count]
        return x.clone(memory_format=torch.preserve_format), y.clone()

    def inputs(self, names: list[str], count: int) -> dict[str, Tensor]:
        """Return the first examples' inputs of these layers, and of smooth activations on the gradient path, by name."""
        place = frozenset(names), count
        if place not in self._inputs:
            found = layer_inputs(self.model, names, self.x[:count])
            # Of one example they are asked for time and again; of many they would take memory.
            if count > 1:
                return found
            self._inputs[place] = found
        return dict(self._inputs[place])

    def example_count(self, trained: list[str], most: int, elements: int, least: int = 1) -> int:
        """Return how many examples to measure on: at most ``most``, with so many elements in the trained layers' inputs."""
        elements_each = sum(x.numel() for x in self.inputs(trained, 1).values())
        return max(min(least, self.batch_size), min(self.batch_size, most, elements // max(1, elements_each)))

    def micro_batches(self) -> Iterator[int]:
        """Yield the sizes of micro-batches: the whole batch, then always half as many examples, down to one."""
        size = self.batch_size
        while size > 1:
            yield size
            size = (size + 1) // 2
        yield 1

    def bytes_in_scope(self, memory: Memory) -> int:
        """Return the bytes of a step that the budget bounds."""
        return bytes_in_scope(memory, self.scope)

    def fits(self, memory: Memory) -> bool:
        """Tell whether a step is within the budget."""
        return self.within_budget(self.bytes_in_scope(memory))

    def within_budget(self, size: int) -> bool:
        """Tell whether so many bytes are within the budget."""
        return self.budget is None or size <= self.budget


def make_problem(model: nn.Module, example: tuple[Tensor, Tensor], **given: Any) -> Problem:
    """Return the problem, on a copy of the model; raises ConfigError where the model cannot be copied, or not be run."""
    x, y = example
    try:
        copied = restore(copy.deepcopy(model))
    except Exception as error:
        raise ConfigError(f"a plan is made on a copy of the model, which cannot be copied: {error}") from None
    return Problem(copied, x, y, called=called_modules(copied, x, y, given["loss"]), **given)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into eval mode, and its modules back into theirs: in training mode batch norm would update statistics."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
