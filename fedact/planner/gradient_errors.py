"""Relative squared errors of gradients: by layer, on the grid that choices are made with, and their arithmetic."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf, log
from typing import NamedTuple

import torch
from torch import Tensor

GRID = 1.02
"""Measured errors are taken to the nearest power of this: no choice hangs on their last bits, and their sampling error is
several times as large."""


ROUNDING = 1e-12
"""A relative squared difference below this is rounding."""


LEAST, MOST = 1e-12, 1e18
"""Norms in float32 between these have lost nothing to the range's ends."""


class GradientErrors(NamedTuple):
    """Relative squared errors ||g' - g||^2 / ||g||^2 of one choice of methods, by layer.

    weights: of weight gradients, where the layer's output gradient is exact. outputs: of output gradients, where those of
    the next trained layers are exact: the error of the slopes of the activation functions between.
    """

    weights: dict[str, float]
    outputs: dict[str, float]

    def on_grid(self) -> "GradientErrors":
        """Return the figures that choices are made with: rounded to a grid on which measurements that hardly differ meet."""
        return GradientErrors(*({name: on_grid(value) for name, value in figures.items()} for figures in self))

    @classmethod
    def united(cls, parts: Iterable["GradientErrors"]) -> "GradientErrors":
        """Return the errors of methods for different saved inputs together."""
        weights, outputs = dict[str, float](), dict[str, float]()
        for part in parts:
            weights |= part.weights
            outputs |= part.outputs
        return cls(weights, outputs)


def on_grid(value: float) -> float:
    """Return the power of ``GRID`` that is nearest to a positive value; 0 stays 0.

    >>> on_grid(0.05) == on_grid(0.0500001), round(on_grid(0.05), 4)
    (True, 0.0503)
    """
    return GRID ** round(log(value) / log(GRID)) if 0 < value < inf else value


def mean_errors(measured: Sequence[GradientErrors]) -> GradientErrors:
    """Return the mean of what was measured on several batches."""

    def mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}

    return GradientErrors(*map(mean, zip(*measured, strict=True)))


def relative_errors(gradients: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ||g' - g||^2 / ||g||^2 by layer."""
    return {name: relative_error(gradients[name], g) for name, g in exact.items()}


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    """Return ||g' - g||^2 / ||g||^2; 0 for a difference that is rounding, 1 for any other from a gradient of 0."""
    return relative_distance(gradient, exact, length(exact))


def relative_distance(gradient: Tensor, exact: Tensor, norm: float) -> float:
    """Return ``relative_error`` where the exact gradient's length is known."""
    if exact.dtype.itemsize < torch.float32.itemsize:
        gradient, exact = gradient.float(), exact.float()
    distance = length(gradient - exact)
    relative = (distance / norm) ** 2 if norm else float(distance > 0)
    return relative if relative > ROUNDING else 0.0


def length(x: Tensor) -> float:
    """Return a tensor's Euclidean norm; in float64, which takes twice the time, where float32 may be out of its range."""
    found = float(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)))
    return found if LEAST < found < MOST else float(torch.linalg.vector_norm(x, dtype=torch.float64))
