"""How much a step is expected to teach, by how many layers it trains: what decides ``layers="auto"``."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.measure.step import Batch, record, step
from fedact.models.tasks import Loss
from fedact.nn.surgery import head, install, kept_inputs, smooth_activations

HEAD_STEPS, HEAD_MOMENTUM = 30, 0.9
"""How the head is fitted to the other half: a fresh one tells no layer before it what to learn."""


def gradient_lengths(model: nn.Module, batch: Batch, trained: Sequence[str], loss: Loss) -> dict[str, float]:
    """Return the squared length of each trained layer's exact weight gradient on examples that the head was not fitted to.

    The head is fitted to one half of the batch, the gradient is the other's; then the other way round, and the two are added
    up. One example has no halves and tells nothing: 0. The methods in the model are others afterwards, its weights are not.
    """
    if len(batch[1]) < 2:
        return dict.fromkeys(trained, 0.0)
    halves = list(zip(*(each.chunk(2) for each in batch), strict=True))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    total = dict.fromkeys(trained, 0.0)
    for fitted, held_out in zip(halves, halves[::-1], strict=True):
        _fit_head(model, fitted, trained, loss)
        for name, length in _lengths(model, held_out, trained, loss).items():
            total[name] += length
        _put_back(model, before)
    return total


def expected_learning(lengths: Mapping[str, float], errors: Mapping[str, float]) -> float:
    """Return by how much a step lowers the loss, up to a factor: the sum of ||g||^2 / (1 + error) over trained layers.

    errors: ||g' - g||^2 / ||g||^2 of each of them. To first order a step along g' lowers the loss by <g', g>, which is
    ||g||^2 for the exact gradient; a disturbed one must take that much shorter steps.
    """
    return sum(lengths[name] / (1 + error) for name, error in errors.items())


@torch.no_grad()
def _put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _fit_head(model: nn.Module, batch: Batch, trained: Sequence[str], loss: Loss) -> None:
    """Fit the head alone, from zero, in steps as long as its inputs' length allows for without diverging."""
    for name in [name for name in head(model) if name in trained]:
        features = kept_inputs(model, [name], batch[0])[name]
        rate = 1.0 / max(_mean_square(model.get_submodule(name), features), torch.finfo(torch.float32).tiny)
        install(model, _exact(model, [name]))
        weights = list(model.get_submodule(name).parameters())
        for weight in weights:
            nn.init.zeros_(weight)
        prefix, optimizer = record(model, batch[0]), torch.optim.SGD(weights, rate, HEAD_MOMENTUM)
        for _ in range(HEAD_STEPS):
            step(model, batch, prefix, loss=loss)
            optimizer.step()
            optimizer.zero_grad()


def _mean_square(layer: nn.Module, features: Tensor) -> float:
    """Return the mean squared length of what one of the layer's outputs is computed from."""
    if isinstance(layer, nn.Conv2d):
        return float(features.square().sum(1).mean()) * prod(layer.kernel_size)
    return float(features.flatten(0, -2).square().sum(1).mean())


def _exact(model: nn.Module, trained: Sequence[str]) -> dict[str, Exact]:
    return dict.fromkeys([*trained, *smooth_activations(model)], Exact())


def _lengths(model: nn.Module, batch: Batch, trained: Sequence[str], loss: Loss) -> dict[str, float]:
    install(model, _exact(model, trained))
    step(model, batch, record(model, batch[0]), loss=loss)
    gradients = {name: model.get_submodule(name).weight.grad for name in trained}
    model.zero_grad()
    return {name: float(g.double().square().sum()) for name, g in gradients.items() if isinstance(g, Tensor)}


ENOUGH = 0.7
"""Fewer layers will do where they are expected to teach this share of the most (the README has what was seen)."""
UNTOLD = 8
"""Where the examples tell nothing."""

Errors = Mapping[str, float]


def depth_for(errors_at: Mapping[int, Errors], lengths: Mapping[str, float], enough: float = ENOUGH) -> int | None:
    """Return the least depth that teaches enough, or ``UNTOLD`` where the examples tell nothing; None where there is none.

    errors_at: the trained layers' gradient errors at every depth that can be had. lengths: of their exact gradients.
    """
    teaches = {depth: expected_learning(lengths, errors) for depth, errors in sorted(errors_at.items())}
    most = max(teaches.values(), default=0.0)
    if not 0 < most < float("inf"):
        return max((depth for depth in teaches if depth <= UNTOLD), default=min(teaches, default=None))
    return next(depth for depth, learning in teaches.items() if learning >= enough * most)


def grid(depths: Sequence[int]) -> list[int]:
    """Return the depths that are looked at: every fourth, the first three and the last."""
    return [depth for depth in depths if depth < 4 or depth % 4 == 0 or depth == depths[-1]]
