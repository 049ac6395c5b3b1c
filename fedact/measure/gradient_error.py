"""How close a method's gradient is to the exact one, layer by layer, and what a step of it holds."""

from collections.abc import Iterable, Mapping, Sequence
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
from fedact.nn.layers.compressed import LayerCodec
from fedact.nn.surgery import trained_parameters

ROUNDING = 1e-9
"""A relative squared difference below this is rounding, or the order of a summation."""

Gradients = dict[str, Tensor]
States = list[dict[Any, State]]


@dataclass(frozen=True)
class GradientError:
    """One method on some batches.

    saved, state, peak and paper bytes: the largest over the batches. By trained weight, for g exact and g' compressed, means
    over the batches: cosine; bias = ||E g' - g||^2 / ||g||^2, an unbiased estimate that may fall below zero; variance =
    E ||g' - E g'||^2 / ||g||^2; error = E ||g' - g||^2 / ||g||^2, the sum of the two. total_error: that of all weights as
    one vector. draws: how many g' of a batch the means are over, 1 where two are the same: nothing in the method is random.
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
    """One weight's draws against its exact gradient; bias and variance are squared lengths, and so is ``squared_norm``."""

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
    """Measure each method's model on the same batches; all have the same weights and the same trained layers.

    exact: has the exact gradient. warm_up: a batch of its own before the first that counts: a method that keeps a state
    finds it there. draws: gradients of a batch where the method is random, at least 2. micro_batch: what every model takes a
    batch in, None: at once.
    """
    first = prefix_outputs(exact, warm_up[0])
    for model in models.values():
        gradients(model, warm_up, prefix_outputs(model, warm_up[0], first), micro_batch)
    memories: dict[str, list[Memory]] = {name: [] for name in models}
    found: dict[str, list[tuple[int, dict[str, WeightError]]]] = {name: [] for name in models}
    for batch in batches:
        prefix = prefix_outputs(exact, batch[0])
        reference = gradients(exact, batch, prefix)
        for name, model in models.items():
            # What is not random on one batch is not on another.
            settled = bool(found[name]) and found[name][0][0] == 1
            own = prefix_outputs(model, batch[0], prefix)
            memory, drawn = measure_draws(model, batch, own, 1 if settled else draws, seed, micro_batch)
            memories[name].append(memory)
            found[name].append((len(drawn), _spreads(drawn, reference)))
    return [_summary(name, memories[name], found[name]) for name in models]


def gradients(model: nn.Module, batch: Batch, prefix: Inputs | None = None, micro_batch: int | None = None) -> Gradients:
    """Return the gradient of each trained parameter; the model is left without any."""
    if micro_batch is None:
        step(model, batch, prefix)
    else:
        for part in parts(batch, micro_batch):
            add_gradient(model, *part, len(batch[1]))
    return _taken(model)


def _taken(model: nn.Module) -> Gradients:
    trained = trained_parameters(model)
    found = {name: parameter.grad for name, parameter in trained.items() if parameter.grad is not None}
    model.zero_grad()
    return found


def measure_draws(
    model: nn.Module, batch: Batch, prefix: Inputs, draws: int, seed: int, micro_batch: int | None = None
) -> tuple[Memory, list[Gradients]]:
    """Take one step and return its bytes and its gradient, and further draws of it where the second is another.

    All draws start from the same state; the model is left in the one after the step.
    """
    before, memories = method_states(model), []
    for part in parts(batch, micro_batch):
        # The whole step, for the frozen part has the peak.
        with measure_memory(model, inputs=part) as memory:
            add_gradient(model, *part, len(batch[1]))
        memories.append(memory)
    drawn, after = [_taken(model)], method_states(model)
    while len(drawn) < draws and (len(drawn) == 1 or not _same(*drawn[:2])):
        restore_states(model, before)
        _reseed(model, seed, len(drawn))
        drawn.append(gradients(model, batch, prefix, micro_batch))
    restore_states(model, after)
    return maximum_memory(memories), drawn[:1] if draws > 1 and _same(*drawn[:2]) else drawn


def _same(first: Gradients, second: Gradients) -> bool:
    """Tell whether two gradients differ by rounding alone."""
    return all((g - second[key]).square().sum() <= ROUNDING * g.square().sum() for key, g in first.items())


def _spreads(draws: Sequence[Gradients], exact: Gradients) -> dict[str, WeightError]:
    """Return how each trained weight's draws lie around its exact gradient."""
    return {key: weight_error([each[key] for each in draws], g) for key, g in exact.items() if key.endswith("weight")}


def weight_error(draws: Sequence[Tensor], exact: Tensor) -> WeightError:
    """Return the mean cosine of the draws, and what of their mean squared error is bias and what variance."""
    ours, g = torch.stack(list(draws)).flatten(1).double(), exact.flatten().double()
    mean, count = ours.mean(0), len(ours)
    variance = float((ours - mean).square().sum()) / max(count - 1, 1)
    # The mean of a few draws is off by their variance over their number, which is no bias.
    bias = float((mean - g).square().sum()) - variance / count
    length = float(g.square().sum())
    return WeightError(float(((ours @ g) / (ours.norm(dim=1) * length**0.5)).nan_to_num().mean()), bias, variance, length)


def _summary(name: str, memories: Sequence[Memory], found: Sequence[tuple[int, dict[str, WeightError]]]) -> GradientError:
    most, batches = maximum_memory(memories), [spreads for _, spreads in found]
    weights = list(batches[0])
    bias = {key: fmean(_share(each[key].bias, each[key].squared_norm) for each in batches) for key in weights}
    variance = {key: fmean(_share(each[key].variance, each[key].squared_norm) for each in batches) for key in weights}
    return GradientError(
        method=name,
        saved_bytes=most.saved_bytes,
        state_bytes=most.state_bytes,
        peak_bytes=most.peak_bytes,
        paper_bytes=most.paper_bytes,
        draws=max(count for count, _ in found),
        cosine={key: fmean(each[key].cosine for each in batches) for key in weights},
        bias=bias,
        variance=variance,
        error={key: bias[key] + variance[key] for key in weights},
        total_error=fmean(_total(each.values()) for each in batches),
    )


def _total(spreads: Iterable[WeightError]) -> float:
    every = list(spreads)
    return _share(sum(each.bias + each.variance for each in every), sum(each.squared_norm for each in every))


def _share(part: float, whole: float) -> float:
    return part / max(whole, torch.finfo(torch.float64).tiny)


def _codecs(model: nn.Module) -> list[LayerCodec]:
    return [module.codec for module in model.modules() if isinstance(module, CodecLayer)]


def method_states(model: nn.Module) -> States:
    """Return what the model's methods keep between steps, as it is now."""
    return [dict(codec.states) for codec in _codecs(model)]


def restore_states(model: nn.Module, before: States) -> None:
    """Make the model's methods go on from what ``states`` returned."""
    for codec, state in zip(_codecs(model), before, strict=True):
        codec.states = dict(state)


def _reseed(model: nn.Module, seed: int, number: int) -> None:
    """Let methods that start from something random start from another draw."""
    for place, codec in enumerate(_codecs(model)):
        if codec.method.start(seed).tensors:
            own = int(generator(seed, Purpose.METHOD, number, place).integers(2**62))
            codec.states = {size: codec.method.start(own) for size in codec.states}
