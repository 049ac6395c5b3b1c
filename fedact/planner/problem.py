"""What a plan is made for, and the measured memory of a step under given methods."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.compression.exact import Exact, Vanilla
from fedact.config.errors import ConfigError
from fedact.measure.memory import Memory, maximum_memory, measure_memory
from fedact.models.sgd import Sgd
from fedact.models.tasks import Loss
from fedact.nn.layers.stored_sizes import StoredSizes
from fedact.nn.prefix.chunks import examples_are_independent
from fedact.nn.prefix.split import split
from fedact.nn.surgery import (
    calibrate,
    convolutions,
    head,
    install,
    layer_inputs,
    restore,
    smooth_activations,
    trained_layers,
    trained_parameters,
)
from fedact.planner.example_check import called_modules
from fedact.planner.worst_case import worst_case_tensors, worst_cases
from fedact.training.local import micro_step
from fedact.training.step_bytes import bytes_in_scope

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
"""Any will do: the memory of an optimizer's step does not depend on their values."""

Methods = Mapping[str, Method]
"""The method of each saved input, by layer."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What a plan is made for; the model is a copy that may be changed.

    x, y: a whole batch. method: "auto" or a given one. budget: bytes in the scope ("saved" or "peak"), None for no bound.
    called: names of the modules that the model calls; others train nothing. momentum: whether the optimizer has any.
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

    @property
    def batch_size(self) -> int:
        return len(self.y)

    @property
    def plain_model(self) -> nn.Module:
        """The model without any methods."""
        return restore(self.model)

    def trained(self, depth: int) -> list[str]:
        """Return the names of the layers that are trained at a depth, a number of convolutions.

        Raises ConfigError where the model has fewer, or calls none of them.
        """
        if not (trained := self._called_layers(depth)):
            raise ConfigError("the model calls none of the layers that would be trained")
        return trained

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
        if not convolutions(self.model) and not head(self.model):
            raise ConfigError("the model has neither a convolution nor a linear layer that could be trained")
        if layers != "auto":
            self.trained(int(layers))
            return range(int(layers), int(layers) + 1)
        most = len(convolutions(self.model))
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
        return layer_inputs(self.model, names, self.x[:count])

    def example_count(self, trained: list[str], most: int, elements: int, least: int = 1) -> int:
        """Return how many examples to measure on: at most ``most``, with so many elements in the trained layers' inputs."""
        elements_each = sum(x.numel() for x in self.inputs(trained, 1).values())
        return max(min(least, self.batch_size), min(self.batch_size, most, elements // max(1, elements_each)))

    def prefix_chunks(self, depth: int, micro_batch: int) -> list[int]:
        """Return how many examples at a time the frozen prefix may run on, all at once (0) first."""
        if self.scope == "saved":
            return [0]
        names = [*self.trained(depth), *smooth_activations(self.model)]
        model = install(self.model, dict.fromkeys(names, Exact()))
        parts = split(model)
        if parts is None or not examples_are_independent(parts, self.x[:2]):
            return [0]
        return [0, *(2**power for power in range(max(1, (micro_batch - 1).bit_length()) - 1, -1, -1))]

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


def measure_step(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int = 0) -> Memory:
    """Return the memory of a step that ends a batch, in which every method stores as much as its caps allow.

    It is the most of several steps: of the second one too, where methods have a state, and of steps on the methods' worst
    cases, where the budget bounds working memory that follows the data.
    """
    return maximum_memory([*_steps(problem, methods, micro_batch, prefix_chunk)])


def measure_within_budget(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int) -> Memory:
    """Return what ``measure_step`` does, or less, but over the budget: no more is measured once a step exceeds it."""
    memories: list[Memory] = []
    for memory in _steps(problem, methods, micro_batch, prefix_chunk):
        memories.append(memory)
        if not problem.fits(memory):
            break
    return maximum_memory(memories)


def _steps(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int) -> Iterator[Memory]:
    """Yield the memory of each step that may hold the most."""
    ceilings = {name: method.ceiling for name, method in methods.items()}
    yield from _memories(problem, ceilings, micro_batch, prefix_chunk)
    counts = [method.traits.worst_case_count for method in ceilings.values()] if problem.scope == "peak" else []
    for index in range(max(counts, default=0)):
        # The first step of them makes the inputs.
        yield from _memories(problem, worst_cases(ceilings, index), micro_batch, prefix_chunk)[1:]


def _memories(problem: Problem, methods: Methods, micro_batch: int, prefix_chunk: int) -> list[Memory]:
    """Return the memory of a step, and of the next one too where it leaves a state behind."""
    x, y = problem.examples(micro_batch)
    model = install(problem.model, methods, prefix_chunk=prefix_chunk)
    if any(method.traits.calibrated for method in methods.values()):
        calibrate(model, problem.x)
    parameters = list(trained_parameters(model).values())
    optimizer = Sgd(parameters, lr=0.0, momentum=MOMENTUM if problem.momentum else 0.0, weight_decay=WEIGHT_DECAY)
    memories, stored = list[Memory](), StoredSizes(model)
    while not memories or (len(memories) == 1 and memories[0].state_bytes):
        with stored, measure_memory(model, (x, y, worst_case_tensors(methods)), optimizer, stored) as memory:
            micro_step(model, x, y, problem.batch_size, problem.loss, optimizer, clip_norm=1.0)
        model.zero_grad()
        memories.append(memory)
    return memories


def vanilla_saved_bytes(problem: Problem, names: list[str]) -> int:
    """Return the saved bytes of plain training of these layers on the whole batch at once.

    They grow by the same number with every example, so that two small steps are measured.
    """
    methods = dict.fromkeys(names, Vanilla())
    one = measure_step(problem, methods, 1).saved_bytes
    if problem.batch_size == 1:
        return one
    return one + (measure_step(problem, methods, 2).saved_bytes - one) * (problem.batch_size - 1)


def inference_peak_bytes(problem: Problem) -> int:
    """Return the peak bytes of the model's forward pass on one example when nothing is trained."""
    x, y = problem.examples(1)
    with evaluating(problem.plain_model) as model, measure_memory(model, inputs=(x, y)) as memory, torch.no_grad():
        model(x)
    return memory.peak_bytes


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
