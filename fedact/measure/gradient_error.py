"""Gradient error of methods: cosine, bias and variance of each layer's weight gradient, and the bytes of their steps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedact.compression import State
from fedact.config.seeds import Purpose, generator
from fedact.measure.memory import Memory, maximum_memory, measure_memory
from fedact.measure.step import Batch, parts, prefix_outputs, step
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.nn.layers import CodecLayer
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.surgery import trained_parameters

ROUNDING = 1e-9
"""A relative squared difference below this is rounding, or the order of a summation."""

Gradients = dict[str, Tensor]
States = list[dict[Any, State]]


@dataclass(frozen=True)
class GradientError:
    """One method's bytes and gradient error on some batches.

    saved_bytes, state_bytes, peak_bytes, paper_bytes: see ``Memory``; the largest over the batches. By trained weight, for g
    the exact gradient and g' the method's, means over the batches: cosine of the two; bias = ||E g' - g||^2 / ||g||^2, an
    unbiased estimate that may fall below zero; variance = E ||g' - E g'||^2 / ||g||^2; error = E ||g' - g||^2 / ||g||^2,
    the sum of the two. total_error: the error of all weights as one vector. draws: g' of each batch, 1 where nothing in the
    method is random.
    """

    method: str
    saved_bytes: int
    state_bytes: int
    peak_bytes: int
    paper_bytes: int
    draws: int
    cosine: dict[str, float]
    bias: dict[str, float]
    variance: dict[str, float]
    error: dict[str, float]
    total_error: float


class WeightError(NamedTuple):
    """Gradients of one weight against the exact one: mean cosine, squared bias, variance; the exact one's squared norm."""

    cosine: float
    bias: float
    variance: float
    squared_norm: float


def measure_gradient_errors(
    models: Mapping[str, nn.Module],
    exact: nn.Module,
    warm_up: Batch,
    batches: Sequence[Batch],
    draws: int = 8,
    seed: int = 0,
    micro_batch: int | None = None,
) -> list[GradientError]:
    """Return the gradient error of each method's model, by name, in the same order.

    All models have the same weights and trained layers. exact: the model with the exact gradient. warm_up: a batch before
    those that count, for methods that start from the state of an earlier step. draws: gradients of each batch where a method
    is random, at least 2. micro_batch: examples at a time, None for the whole batch.
    """
    first = prefix_outputs(exact, warm_up[0])
    for model in models.values():
        gradients(model, warm_up, prefix_outputs(model, warm_up[0], first), micro_batch)
    memories: dict[str, list[Memory]] = {name: [] for name in models}
    errors: dict[str, list[dict[str, WeightError]]] = {name: [] for name in models}
    counts = dict.fromkeys(models, draws)
    for batch in batches:
        prefix = prefix_outputs(exact, batch[0])
        reference = gradients(exact, batch, prefix)
        keys = compared(reference)
        for name, model in models.items():
            inputs = prefix_outputs(model, batch[0], prefix)
            memory, drawn = measure_draws(model, batch, inputs, counts[name], seed, micro_batch)
            if not memories[name]:
                # A method that is not random on the first batch is not on the others.
                counts[name] = len(drawn)
            memories[name].append(memory)
            errors[name].append({key: weight_error([one[key] for one in drawn], reference[key]) for key in keys})
    return [_summary(name, maximum_memory(memories[name]), counts[name], errors[name]) for name in models]


def compared(trained: Collection[str]) -> list[str]:
    """Return the trained tensors whose gradients are compared: weights and factors, and the biases of layers without any.

    >>> compared(["0.bias", "1.weight", "1.bias", "2.lora_a", "2.lora_b"])
    ['0.bias', '1.weight', '2.lora_a', '2.lora_b']
    """
    return [name for name in trained if not name.endswith("bias") or f"{name.removesuffix('bias')}weight" not in trained]


def gradients(model: nn.Module, batch: Batch, prefix: Inputs | None = None, micro_batch: int | None = None) -> Gradients:
    """Return the gradient of each trained parameter, by name; the model is left without any."""
    if micro_batch is None:
        step(model, batch, prefix)
    else:
        for part in parts(batch, micro_batch):
            add_gradient(model, *part, len(batch[1]))
    return _take_gradients(model)


def _take_gradients(model: nn.Module) -> Gradients:
    trained = trained_parameters(model)
    found = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    model.zero_grad()
    return found


def measure_draws(
    model: nn.Module, batch: Batch, prefix: Inputs, draws: int, seed: int, micro_batch: int | None = None
) -> tuple[Memory, list[Gradients]]:
    """Return the memory of one step and its gradients: as many draws as asked for, one where the second equals the first.

    All draws start from the same method states; the model is left in those after one step.
    """
    before, memories = method_states(model), []
    for part in parts(batch, micro_batch):
        # The whole step, for the frozen part has the peak.
        with measure_memory(model, inputs=part) as memory:
            add_gradient(model, *part, len(batch[1]))
        memories.append(memory)
    drawn, after = [_take_gradients(model)], method_states(model)
    while len(drawn) < draws and (len(drawn) == 1 or not _same(*drawn[:2])):
        restore_states(model, before)
        _reseed(model, seed, len(drawn))
        drawn.append(gradients(model, batch, prefix, micro_batch))
    restore_states(model, after)
    return maximum_memory(memories), drawn[:1] if draws > 1 and _same(*drawn[:2]) else drawn


def _same(first: Gradients, second: Gradients) -> bool:
    """Tell whether two gradients differ by rounding alone."""
    return all((g - second[key]).square().sum() <= ROUNDING * g.square().sum() for key, g in first.items())


def weight_error(draws: Sequence[Tensor], exact: Tensor) -> WeightError:
    """Return the mean cosine of the draws with the exact gradient, and the parts of their mean squared error."""
    ours, g = torch.stack(list(draws)).flatten(1).double(), exact.flatten().double()
    mean, count = ours.mean(0), len(ours)
    variance = float((ours - mean).square().sum()) / max(count - 1, 1)
    # The mean of n draws is off by variance / n, which is no bias.
    bias = float((mean - g).square().sum()) - variance / count
    squared_norm = float(g.square().sum())
    cosines = ((ours @ g) / (ours.norm(dim=1) * squared_norm**0.5)).nan_to_num()
    return WeightError(float(cosines.mean()), bias, variance, squared_norm)


def _summary(name: str, memory: Memory, draws: int, batches: Sequence[Mapping[str, WeightError]]) -> GradientError:
    weights = list(batches[0])
    bias = {key: fmean(_share(each[key].bias, each[key].squared_norm) for each in batches) for key in weights}
    variance = {key: fmean(_share(each[key].variance, each[key].squared_norm) for each in batches) for key in weights}
    totals = []
    for each in batches:
        error = sum(weight.bias + weight.variance for weight in each.values())
        totals.append(_share(error, sum(weight.squared_norm for weight in each.values())))
    return GradientError(
        method=name,
        saved_bytes=memory.saved_bytes,
        state_bytes=memory.state_bytes,
        peak_bytes=memory.peak_bytes,
        paper_bytes=memory.paper_bytes,
        draws=draws,
        cosine={key: fmean(each[key].cosine for each in batches) for key in weights},
        bias=bias,
        variance=variance,
        error={key: bias[key] + variance[key] for key in weights},
        total_error=fmean(totals),
    )


def _share(part: float, whole: float) -> float:
    return part / max(whole, torch.finfo(torch.float64).tiny)


def _codecs(model: nn.Module) -> list[LayerCodec]:
    return [module.codec for module in model.modules() if isinstance(module, CodecLayer)]


def method_states(model: nn.Module) -> States:
    """Return a snapshot of the states that the model's methods keep between steps, layer by layer."""
    return [dict(codec.states) for codec in _codecs(model)]


def restore_states(model: nn.Module, before: States) -> None:
    """Put a snapshot of ``method_states`` back into the model."""
    for codec, state in zip(_codecs(model), before, strict=True):
        codec.states = dict(state)


def _reseed(model: nn.Module, seed: int, number: int) -> None:
    """Give methods with a random start another one; ``number`` is the draw's."""
    for place, codec in enumerate(_codecs(model)):
        if codec.method.start(seed).tensors:
            own = int(generator(seed, Purpose.METHOD, number, place).integers(2**62))
            codec.states = {size: codec.method.start(own) for size in codec.states}
