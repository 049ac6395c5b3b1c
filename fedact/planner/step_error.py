"""The gradient error and the operations of a plan's step, from one run of its micro-batches beside an exact one."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.measure.cost import count_flops
from fedact.measure.step import Batch, parts, prefix_outputs
from fedact.models.tasks import Loss
from fedact.nn.layers.base import has_weights
from fedact.nn.surgery import calibrate, install
from fedact.planner.gradient_errors import relative_errors
from fedact.planner.observed_step import ObservedStep
from fedact.planner.problem import Problem
from fedact.planner.sensitivity import Methods, gradients_of, take_gradients

EXAMPLES, ELEMENTS = 8, 6_000_000
"""Errors are measured on so many examples, fewer where their saved inputs have more elements in all."""


class StepError(NamedTuple):
    """The sum of the trained layers' gradient errors, and the floating-point operations of the first micro-batch."""

    error: float
    flops: int


def step_error(
    problem: Problem, methods: Methods, micro_batch: int, observed: ObservedStep | None = None
) -> StepError | None:
    """Return the gradient error of methods with loss, None of exact ones.

    observed: a step on the first micro-batch, which is not run again where its gradient was seen.
    """
    if all(method.traits.keeps_input for method in methods.values()):
        return None
    trained = [name for name in methods if has_weights(problem.model.get_submodule(name))]
    count = max(micro_batch, problem.example_count(trained, EXAMPLES, ELEMENTS))
    calibration = problem.x if any(method.traits.calibrated for method in methods.values()) else None
    first = None
    if observed and observed.gradients and observed.flops and (count <= micro_batch or not observed.leaves_state):
        share = problem.batch_size / micro_batch
        first = {name: share * gradient for name, gradient in observed.gradients.items()}, observed.flops
    batch = problem.examples(count)
    return measure_step_error(problem.model, batch, methods, problem.loss, micro_batch, calibration, first, problem.room)


def measure_step_error(
    model: nn.Module,
    batch: Batch,
    methods: Methods,
    loss: Loss,
    micro_batch: int,
    calibration: Tensor | None = None,
    first: tuple[Mapping[str, Tensor], int] | None = None,
    room: int | None = None,
) -> StepError:
    """Return the gradient error of a batch in micro-batches, and what it costs; the model's methods are changed.

    calibration: inputs on which calibrated methods compute their states first. first: gradients and operations of the first
    micro-batch, where they are known. room: bytes for the wide maps of a step in streams; None for the fast engine.
    """
    trained, batches = [name for name in methods if has_weights(model.get_submodule(name))], [*parts(batch, micro_batch)]
    install(model, dict.fromkeys(methods, Exact()))
    prefixes = [prefix_outputs(model, x) for x, _ in batches]
    # Of all examples at once: they are as many as one micro-batch, or few.
    exact = gradients_of(model, batch, prefixes[0] if len(batches) == 1 else None, loss, trained)
    install(model, methods, room=room)
    if calibration is not None:
        calibrate(model, calibration)
    if first is None:
        part = batches[0]
        flops = count_flops(model, part, prefix_outputs(model, part[0], prefixes[0]), loss, keeps_gradient=True)
        first = take_gradients(model, trained), flops
    compressed = [first[0]]
    for part, prefix in zip(batches[1:], prefixes[1:], strict=True):
        compressed.append(gradients_of(model, part, prefix_outputs(model, part[0], prefix), loss, trained))
    shares = [len(y) / len(batch[1]) for _, y in batches]
    errors = relative_errors(_weighted_sum(compressed, shares), exact)
    return StepError(sum(errors.values()), first[1])


def _weighted_sum(gradients: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    for each, share in zip(gradients, shares, strict=True):
        for name, gradient in each.items():
            totals[name] = totals[name] + share * gradient if name in totals else share * gradient
    return totals
