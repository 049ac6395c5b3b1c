"""Tensors of the kinds that methods meet: noise, decaying spectra, rectified, constant and all zeros."""

import torch
from torch import Tensor


def gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return noise, which no method makes much smaller."""
    return torch.randn(shape, generator=generator)


def decaying(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return energy that falls off along every mode, as in real activations."""
    x = torch.randn(shape, generator=generator)
    for mode, size in enumerate(shape):
        view = [size if position == mode else 1 for position in range(len(shape))]
        x = x * (0.5 ** torch.arange(size)).view(view)
    return x


def relu6_like(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return what a ReLU6 leaves: half zeros, nothing above 6."""
    return (3 * torch.randn(shape, generator=generator)).clamp(0, 6)


def constant(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return the same number everywhere."""
    return torch.full(shape, 1.5)


def zeros(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return zeros, as a dead layer leaves."""
    return torch.zeros(shape)


INPUTS = {f.__name__: f for f in (gaussian, decaying, relu6_like, constant, zeros)}
"""The kinds of inputs by name."""


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the length of the difference relative to what was expected."""
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))
