"""Which depth ``layers="auto"`` trains: the least whose step is expected to lower the loss nearly as much as any."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.measure.step import Batch, prefix_outputs, step
from fedact.models.tasks import Loss
from fedact.nn.surgery import head, install, layer_inputs, smooth_activations

SUFFICIENT_SHARE = 0.7
"""The least share of the greatest expected loss decrease that a shallower depth must reach (measured: the README)."""
DEFAULT_DEPTH = 8
"""Trained convolutions where no gradient signal was measured."""
HEAD_STEPS, HEAD_MOMENTUM = 30, 0.9
"""SGD on the head before gradients are measured: those behind an untrained head say nothing of what is to be learned."""

LayerErrors = Mapping[str, float]
"""||g' - g||^2 / ||g||^2 by trained layer, for g the exact weight gradient and g' the plan's."""


def sufficient_depth(
    errors: Mapping[int, LayerErrors], squared_norms: Mapping[str, float], share: float = SUFFICIENT_SHARE
) -> int | None:
    """Return the least depth whose expected loss decrease is at least ``share`` of the greatest; None without any depth.

    errors: the trained layers' gradient errors, by depth. squared_norms: of their exact gradients. Where these are all 0, or
    not finite, the largest depth up to ``DEFAULT_DEPTH``.
    """
    decrease = {depth: expected_loss_decrease(squared_norms, each) for depth, each in sorted(errors.items())}
    most = max(decrease.values(), default=0.0)
    if not 0 < most < float("inf"):
        return max((depth for depth in decrease if depth <= DEFAULT_DEPTH), default=min(decrease, default=None))
    return next(depth for depth, value in decrease.items() if value >= share * most)


def expected_loss_decrease(squared_norms: Mapping[str, float], errors: LayerErrors) -> float:
    """Return by how much a step lowers the loss, up to a factor: the sum of ||g||^2 / (1 + error) over trained layers.

    To first order a step along g' lowers the loss by <g', g>, which is ||g||^2 for the exact gradient; a gradient with an
    error must take that much shorter steps.

    >>> expected_loss_decrease({"conv": 4.0, "head": 1.0}, {"conv": 1.0, "head": 0.0})
    3.0
    """
    return sum(squared_norms[name] / (1 + error) for name, error in errors.items())


def candidate_depths(depths: Sequence[int]) -> list[int]:
    """Return every fourth of the depths, with the first three and the last.

    >>> candidate_depths(range(1, 11))
    [1, 2, 3, 4, 8, 10]
    """
    return [depth for depth in depths if depth < 4 or depth % 4 == 0 or depth == depths[-1]]


def squared_gradient_norms(model: nn.Module, batch: Batch, trained: Sequence[str], loss: Loss) -> dict[str, float]:
    """Return the squared norm of each trained layer's exact weight gradient, with a head fitted to other examples.

    The head is fitted to one half of the batch and the gradient taken on the other; then the other way round, and the two
    squared norms are added. A batch of one example cannot be halved: all are 0. The model's weights are left as they were,
    its methods are not.
    """
    if len(batch[1]) < 2:
        return dict.fromkeys(trained, 0.0)
    halves = list(zip(*(tensor.chunk(2) for tensor in batch), strict=True))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    total = dict.fromkeys(trained, 0.0)
    for fitting_half, other_half in zip(halves, halves[::-1], strict=True):
        _fit_head(model, fitting_half, trained, loss)
        install(model, _exact_methods(model, trained))
        step(model, other_half, prefix_outputs(model, other_half[0]), loss=loss)
        for name in trained:
            gradient = model.get_submodule(name).weight.grad
            total[name] += float(gradient.double().square().sum()) if isinstance(gradient, Tensor) else 0.0
        model.zero_grad()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
    return total


def _fit_head(model: nn.Module, batch: Batch, trained: Sequence[str], loss: Loss) -> None:
    """Fit the trained part of the head alone, from zero, at the learning rate 1 / (mean squared norm of its input)."""
    for name in [name for name in head(model) if name in trained]:
        layer, features = model.get_submodule(name), layer_inputs(model, [name], batch[0])[name]
        if isinstance(layer, nn.Conv2d):
            squared_norm = float(features.square().sum(1).mean()) * prod(layer.kernel_size)
        else:
            squared_norm = float(features.flatten(0, -2).square().sum(1).mean())
        rate = 1.0 / max(squared_norm, torch.finfo(torch.float32).tiny)
        install(model, _exact_methods(model, [name]))
        weights = list(model.get_submodule(name).parameters())
        for weight in weights:
            nn.init.zeros_(weight)
        prefix, optimizer = prefix_outputs(model, batch[0]), torch.optim.SGD(weights, rate, HEAD_MOMENTUM)
        for _ in range(HEAD_STEPS):
            step(model, batch, prefix, loss=loss)
            optimizer.step()
            optimizer.zero_grad()


def _exact_methods(model: nn.Module, trained: Sequence[str]) -> dict[str, Exact]:
    return dict.fromkeys([*trained, *smooth_activations(model)], Exact())
