"""The arithmetic of a stream: one group of channels through a stage, with nothing larger than its maps."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedact.compression.operations import Convolution
from fedact.nn.layers.activations import Masked
from fedact.torch_private import hardtanh_backward_into, threshold_backward_into

TENSORS = 6
"""Of every stage: weight, bias, and the norm's mean, variance, scale and shift."""


@dataclass(frozen=True)
class StageSettings:
    """What of a stage is no tensor: the convolution's geometry, the norm's eps, the activation's module or None."""

    convolution: Convolution
    eps: float
    activation: Any

    @property
    def is_smooth(self) -> bool:
        """Whether the activation's gradient needs its input."""
        return self.activation is not None and not isinstance(self.activation, Masked)

    def size(self, shape: tuple[int, int], weight: Tensor) -> tuple[int, int]:
        """Return the rows and columns that the convolution makes of an image of these."""
        c = self.convolution
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(shape, c.padding, c.dilation, weight.shape[2:], c.stride, strict=True)
        )
        return rows, columns


class Stage(NamedTuple):
    """A stage with its weights: ``activation(scale * convolution(x) + shift)``, scale and shift with a bias in them.

    scale, shift: (channels, 1, 1), None where there is neither norm nor bias.
    """

    settings: StageSettings
    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None

    @classmethod
    def of(cls, settings: StageSettings, tensors: tuple[Tensor | None, ...]) -> "Stage":
        """Return the stage of a module's tensors (see ``TENSORS``)."""
        weight, bias, mean, variance, gamma, beta = tensors
        assert weight is not None
        scale = shift = None
        if mean is not None and variance is not None:
            scale = (variance + settings.eps).rsqrt_()
            scale = scale if gamma is None else scale.mul_(gamma)
            centre = mean if bias is None else mean - bias
            shift = torch.addcmul(torch.zeros_like(mean) if beta is None else beta, centre, scale, value=-1)
        elif bias is not None:
            shift = bias
        return cls(
            settings,
            weight,
            scale if scale is None else scale.view(-1, 1, 1),
            shift if shift is None else shift.view(-1, 1, 1),
        )

    def affine_(self, z: Tensor, j: slice) -> Tensor:
        """Scale and shift the convolution's outputs of some channels in place."""
        if self.scale is not None and self.shift is not None:
            return torch.addcmul(self.shift[j], z, self.scale[j], out=z)
        return z if self.shift is None else z.add_(self.shift[j])

    def activate(self, z: Tensor) -> Tensor:
        """Return the activation of z, in place where its gradient does not need z."""
        activation = self.settings.activation
        if activation is None:
            return z
        if self.settings.is_smooth:
            return activation.activate(z)  # type: ignore[no-any-return]
        lower, upper, _ = activation.slope()
        return F.relu_(z) if upper == float("inf") else F.hardtanh_(z, lower, upper)

    def slope_times_(self, gradient: Tensor, z: Tensor) -> Tensor:
        """Return the gradient times the activation's slope at z, in place where possible; a ReLU's z may be its output."""
        activation = self.settings.activation
        if activation is None:
            return gradient
        if self.settings.is_smooth:
            return activation.slope_times(gradient, z)  # type: ignore[no-any-return]
        lower, upper, _ = activation.slope()
        if upper == float("inf"):
            return threshold_backward_into(gradient, z, lower, grad_input=gradient)
        return hardtanh_backward_into(gradient, z, lower, upper, grad_input=gradient)


@dataclass(frozen=True)
class Geometry:
    """A block without its tensors; first: None where the depthwise convolution reads the block's input."""

    first: StageSettings | None
    depthwise: StageSettings
    project: StageSettings

    @cached_property
    def expands_pointwise(self) -> bool:
        """Whether the first convolution is a matrix product."""
        c = None if self.first is None else self.first.convolution
        return c is not None and c.stride == (1, 1) and c.padding == (0, 0)

    def stages(self, tensors: tuple[Tensor | None, ...]) -> tuple[Stage | None, Stage, Stage]:
        """Return the stages with their tensors, which come in this order."""
        parts = [tensors[place : place + TENSORS] for place in range(0, len(tensors), TENSORS)]
        first = None if self.first is None else Stage.of(self.first, parts[0])
        return first, Stage.of(self.depthwise, parts[-2]), Stage.of(self.project, parts[-1])

    def step(self, x: Tensor, weights: tuple[Tensor, ...], room: int) -> int:
        """Return how many channels at a time have their maps in ``room`` bytes, backward as well, at least one.

        Alive at once are two maps of the depthwise input and one of its output, or one and two.
        """
        rows, columns = x.shape[2], x.shape[3]
        if self.first is not None:
            rows, columns = self.first.size((rows, columns), weights[0])
        after = self.depthwise.size((rows, columns), weights[-2])
        wide, narrow = rows * columns, after[0] * after[1]
        before = wide * (2 if self.first is not None and self.first.is_smooth else 1)
        elements = before + max((3 if self.depthwise.is_smooth else 2) * narrow, wide + narrow)
        return max(1, min(len(weights[-2]), room // (len(x) * elements * x.element_size())))


def groups(channels: int, step: int) -> Iterator[slice]:
    """Yield the channels in groups of ``step``, as even as they can be."""
    count = -(-channels // step)
    bounds = [channels * place // count for place in range(count + 1)]
    yield from map(slice, bounds[:-1], bounds[1:])


def product(weight: Tensor, x: Tensor) -> Tensor:
    """Return a matrix (outputs, inputs) times every example of x (examples, inputs, positions)."""
    return torch.mm(weight, x[0]).unsqueeze(0) if len(x) == 1 else torch.bmm(weight.expand(len(x), -1, -1), x)


def add_product_(total: Tensor, weight: Tensor, x: Tensor) -> None:
    """Add a matrix times every example of x to a tensor (examples, outputs, positions)."""
    if len(x) == 1:
        total[0].addmm_(weight, x[0])
    else:
        total.baddbmm_(weight.expand(len(x), -1, -1), x)


def add_outer_(total: Tensor, gradient: Tensor, x: Tensor, scale: Tensor | None = None) -> None:
    """Add the sum over examples of gradient times x transposed to a matrix, its rows times ``scale`` (rows, 1)."""
    if scale is None and len(x) == 1:
        total.addmm_(gradient[0], x[0].t())
        return
    sums = torch.mm(gradient[0], x[0].t()) if len(x) == 1 else torch.bmm(gradient, x.transpose(1, 2)).sum(0)
    if scale is None:
        total.add_(sums)
    else:
        total.addcmul_(sums, scale)
