"""The measured memory of a step under given methods."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedact.compression.exact import Vanilla
from fedact.measure.floor import largest_layer
from fedact.measure.memory import Memory, maximum_memory, measure_memory
from fedact.models.micro_batch import Inputs, scores_of
from fedact.models.sgd import Sgd
from fedact.nn.layers.stored_sizes import StoredSizes
from fedact.nn.prefix.chunks import in_chunks
from fedact.nn.prefix.split import PrefixOutputs, split
from fedact.nn.surgery import calibrate, install, trained_parameters
from fedact.planner.observed_step import ObservedStep
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem, evaluating
from fedact.planner.worst_case import worst_case_tensors, worst_cases
from fedact.training.local import micro_step

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
"""Any will do: the memory of an optimizer's step does not depend on their values."""


def measure_step(problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule = WHOLE) -> Memory:
    """Return the memory of a step that ends a batch, in which every method stores as much as its caps allow.

    It is the most of several steps: of the second one too, where methods have a state, and of steps on the methods' worst
    cases, where the budget bounds working memory that follows the data.
    """
    return maximum_memory([*_steps(problem, methods, micro_batch, prefix)])


def measure_within_budget(
    problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule, observed: ObservedStep | None = None
) -> Memory:
    """Return what ``measure_step`` does, or less, but over the budget: no more is measured once a step exceeds it.

    observed: sees the first step.
    """
    memories: list[Memory] = []
    for memory in _steps(problem, methods, micro_batch, prefix, observed):
        memories.append(memory)
        if not problem.fits(memory):
            break
    return maximum_memory(memories)


def _steps(
    problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule, observed: ObservedStep | None = None
) -> Iterator[Memory]:
    """Yield the memory of each step that may hold the most."""
    ceilings = {name: method.ceiling for name, method in methods.items()}
    yield from _memories(problem, ceilings, micro_batch, prefix, observed)
    counts = [method.traits.worst_case_count for method in ceilings.values()] if problem.scope == "peak" else []
    for index in range(max(counts, default=0)):
        yield _worst_case_memory(problem, worst_cases(ceilings, index), micro_batch, prefix)


def _memories(
    problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule, observed: ObservedStep | None
) -> list[Memory]:
    """Return the memory of a step, and of the next one too where it leaves a state behind."""
    model, optimizer = _client(problem, methods, prefix)
    memories = [_memory(problem, model, optimizer, *problem.examples(micro_batch), observed=observed)]
    if memories[0].state_bytes:
        if observed is not None:
            observed.leaves_state = True
        memories.append(_memory(problem, model, optimizer, *problem.examples(micro_batch)))
    return memories


def _worst_case_memory(problem: Problem, methods: Methods, micro_batch: int, prefix: PrefixSchedule) -> Memory:
    """Return the memory of a step on methods' worst cases, with their states.

    Where the prefix runs in chunks, from its outputs: no method has to do with what it takes.
    """
    model, optimizer = _client(problem, methods, prefix)
    x, y = problem.examples(micro_batch)
    inputs: Inputs = x
    if prefix.chunk and (parts := split(model)) and (outputs := in_chunks(parts.prefix, x, prefix.chunk)):
        inputs = PrefixOutputs(parts, tuple(outputs))
    # The first forward pass makes the inputs.
    scores_of(model, inputs)
    return _memory(problem, model, optimizer, inputs, y, worst_case_tensors(methods))


def _client(problem: Problem, methods: Methods, prefix: PrefixSchedule) -> tuple[nn.Module, Sgd]:
    """Return the model with methods installed, and its optimizer."""
    model = install(problem.model, methods, prefix_chunk=prefix.chunk, room=problem.room, tiles=prefix.tiles)
    if any(method.traits.calibrated for method in methods.values()):
        calibrate(model, problem.x)
    parameters = list(trained_parameters(model).values())
    return model, Sgd(parameters, lr=0.0, momentum=MOMENTUM if problem.momentum else 0.0, weight_decay=WEIGHT_DECAY)


def _memory(
    problem: Problem,
    model: nn.Module,
    optimizer: Sgd,
    x: Inputs,
    y: Tensor,
    others: Sequence[Tensor] = (),
    observed: ObservedStep | None = None,
) -> Memory:
    """Return the memory of a step that ends a batch; others: tensors beside the batch that are given, too."""
    stored, given = StoredSizes(model), x.values if isinstance(x, PrefixOutputs) else x
    counting, note = (
        (observed.counting(model), partial(observed.note_gradients, model)) if observed else (nullcontext(), None)
    )
    with stored, measure_memory(model, (given, y, others), optimizer, stored) as memory, counting:
        micro_step(model, x, y, problem.batch_size, problem.loss, optimizer, clip_norm=1.0, before_clipping=note)
    model.zero_grad()
    return memory


class VanillaStep(NamedTuple):
    """What plain training of a whole batch at once takes: saved bytes, and operations from the first trained layer on."""

    saved_bytes: int
    flops: int


def vanilla_step(problem: Problem, names: list[str]) -> VanillaStep:
    """Return what plain training of these layers takes.

    It grows by the same number with every example, so that two small steps are measured.
    """
    methods, sizes = dict.fromkeys(names, Vanilla()), list[int]()
    observed = ObservedStep(methods)
    for examples in (1, 2)[: problem.batch_size]:
        (memory,) = _memories(problem, methods, examples, WHOLE, observed if examples == 1 else None)
        sizes.append(memory.saved_bytes)
    return VanillaStep(sizes[0] + (sizes[-1] - sizes[0]) * (problem.batch_size - 1), problem.batch_size * observed.flops)


def inference_peak_bytes(problem: Problem) -> int:
    """Return the peak bytes of the forward pass on one example, every layer frozen as in a plan that trains nothing."""
    x, y = problem.examples(1)
    model = install(problem.model, {})
    with evaluating(model), measure_memory(model, inputs=(x, y)) as memory, torch.no_grad():
        model(x)
    return memory.peak_bytes


def floor_bytes(problem: Problem) -> int:
    """Return the largest input and output of any one layer of the model, one image."""
    with evaluating(problem.plain_model) as model, torch.no_grad():
        return largest_layer(model, problem.x).bytes
