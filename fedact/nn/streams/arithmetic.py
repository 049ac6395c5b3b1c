"""The arithmetic of a stream: one group of channels through a stage, with nothing larger than its maps.

A map is a matrix with a row a position and a column a channel: so products, norms and sums need no copies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedact.compression.operations import Convolution
from fedact.nn.layers.activations import Masked
from fedact.torch_private import hardtanh_backward_into, threshold_backward_into

Images = Float[Tensor, "examples channels rows columns"]
Map = Float[Tensor, "positions channels"]

TENSORS = 6
"""Of every stage: weight, bias, and the norm's mean, variance, scale and shift."""


@dataclass(frozen=True)
class StageSettings:
    """What of a stage is no tensor: the convolution's geometry, the norm's eps, the activation's module or None.

    bounds: between which the slope of a piecewise linear activation is 1.
    """

    convolution: Convolution
    eps: float
    activation: Any
    bounds: tuple[float, float] | None

    @classmethod
    def of(cls, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: nn.Module | None) -> "StageSettings":
        """Return the settings of a stage's modules."""
        bounds = activation.slope()[:2] if isinstance(activation, Masked) else None
        return cls(Convolution.of(convolution), 0.0 if norm is None else norm.eps, activation, bounds)

    @property
    def is_smooth(self) -> bool:
        """Whether the activation's gradient needs its input."""
        return self.bounds is None and self.activation is not None

    def size(self, shape: tuple[int, int], weight: Tensor) -> tuple[int, int]:
        """Return the rows and columns that the convolution makes of an image of these."""
        c = self.convolution
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(shape, c.padding, c.dilation, weight.shape[2:], c.stride, strict=True)
        )
        return rows, columns

    def affine(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """Return what the norm multiplies the convolution's channels by and adds to them, a bias in it; None for nothing."""
        _, bias, mean, variance, gamma, beta = tensors
        if mean is None or variance is None:
            return None, bias
        scale = (variance + self.eps).rsqrt_()
        scale = scale if gamma is None else scale.mul_(gamma)
        centre = mean if bias is None else mean - bias
        return scale, torch.addcmul(torch.zeros_like(mean) if beta is None else beta, centre, scale, value=-1)

    def activate(self, z: Tensor) -> Tensor:
        """Return the activation of z, in place where its gradient does not need z."""
        if self.bounds is None:
            return z if self.activation is None else self.activation.activate(z)
        return torch.relu_(z) if self.bounds[1] == inf else z.clamp_(*self.bounds)

    def slope_times_(self, gradient: Tensor, z: Tensor) -> Tensor:
        """Return the gradient times the activation's slope at z, in place where possible; a ReLU's z may be its output."""
        if self.bounds is None:
            return gradient if self.activation is None else self.activation.slope_times(gradient, z)
        if self.bounds[1] == inf:
            return threshold_backward_into(gradient, z, self.bounds[0], grad_input=gradient)
        return hardtanh_backward_into(gradient, z, *self.bounds, grad_input=gradient)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A block without its tensors.

    first: None where the depthwise convolution reads the block's input. steps: the channels at a time, by shape and room.
    """

    first: StageSettings | None
    depthwise: StageSettings
    project: StageSettings
    steps: dict[Any, int] = field(default_factory=dict, init=False)

    @cached_property
    def _moves_nothing(self) -> bool:
        c = None if self.first is None else self.first.convolution
        return c is not None and c.stride == (1, 1) and c.padding == (0, 0)

    def is_product(self, weight: Tensor) -> bool:
        """Tell whether the first convolution, with this weight, is a matrix product."""
        return self._moves_nothing and weight.shape[2:] == (1, 1)

    def matrix(self, weight: Tensor | None) -> Tensor | None:
        """Return the first convolution's weight, or a tensor like it, as a matrix where it is a matrix product."""
        return weight[:, :, 0, 0] if weight is not None and self.is_product(weight) else weight

    def step(self, shape: torch.Size, weights: Sequence[Tensor], room: int, backward: bool = False) -> int:
        """Return how many channels at a time have their maps in ``room`` bytes, forward or backward, at least one.

        shape: of the block's input; weights: of its convolutions.
        """
        key = shape, weights[-1].dtype, room, backward
        if key not in self.steps:
            elements, channels = (self._backward if backward else self._forward)(shape, weights), len(weights[-2])
            most = max(1, min(channels, room // (elements * weights[-1].element_size())))
            # As even as they can be.
            self.steps[key] = -(-channels // -(-channels // most))
        return self.steps[key]

    def _forward(self, shape: torch.Size, weights: Sequence[Tensor]) -> int:
        """Return the elements alive at once for a channel: two maps before the filter, or one before and one after."""
        wide, narrow, kernel = self._sizes(shape, weights)
        before = wide if self.first is None or (not self.first.is_smooth and self.is_product(weights[0])) else 2 * wide
        return max(before, wide + narrow + kernel, 2 * narrow)

    def _backward(self, shape: torch.Size, weights: Sequence[Tensor]) -> int:
        """Return the same for the backward pass: two maps before the filter and one after, or one and two."""
        wide, narrow, kernel = self._sizes(shape, weights)
        before = wide * (2 if self.first is not None and self.first.is_smooth else 1)
        return before + max((3 if self.depthwise.is_smooth else 2) * narrow, wide + narrow) + 2 * kernel

    def _sizes(self, shape: torch.Size, weights: Sequence[Tensor]) -> tuple[int, int, int]:
        """Return the elements of a channel's maps before and after the filter, and of its kernel."""
        size = shape[2], shape[3]
        if self.first is not None:
            size = self.first.size(size, weights[0])
        after, kernel = self.depthwise.size(size, weights[-2]), weights[-2].shape
        return shape[0] * size[0] * size[1], shape[0] * after[0] * after[1], kernel[2] * kernel[3]


class Group(NamedTuple):
    """Some channels of a block: the rows of its tensors that are theirs.

    weight, kernels, columns: of the first (a matrix where it is a product), the depthwise and the last convolution, the last
    one transposed (channels, outputs). scale, shift, kernel_scale, kernel_shift: of the norms of the first two.
    """

    channels: range
    weight: Any
    scale: Any
    shift: Any
    kernels: Any
    kernel_scale: Any
    kernel_shift: Any
    columns: Any


class Tensors(NamedTuple):
    """A block's tensors, as ``groups`` deals them out; scale, shift: of the last convolution's outputs."""

    parts: tuple[Tensor | None, ...]
    scale: Tensor | None
    shift: Tensor | None

    @classmethod
    def of(cls, geometry: Geometry, tensors: tuple[Tensor | None, ...]) -> "Tensors":
        """Return the tensors of a block's stages (see ``TENSORS``) with their norms' factors."""
        depthwise, project = tensors[-2 * TENSORS : -TENSORS], tensors[-TENSORS:]
        weight = scale = shift = None
        if geometry.first is not None:
            weight, (scale, shift) = geometry.matrix(tensors[0]), geometry.first.affine(tensors[:TENSORS])
        assert project[0] is not None
        parts = weight, scale, shift, depthwise[0], *geometry.depthwise.affine(depthwise), project[0][:, :, 0, 0].t()
        return cls(parts, *geometry.project.affine(project))

    def groups(self, step: int) -> Iterator[Group]:
        """Yield all channels, at most ``step`` at a time."""
        columns = self.parts[-1]
        assert columns is not None
        channels = columns.shape[0]
        count = -(-channels // step)
        yield from map(Group, ranges(channels, count), *(split(part, count) for part in self.parts))


def ranges(channels: int, count: int) -> list[range]:
    """Return the places of the channels that ``split`` puts together."""
    step = -(-channels // count)
    return [range(start, min(start + step, channels)) for start in range(0, channels, step)]


def split(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Return a tensor's rows in ``count`` parts, or so many times None."""
    return [tensor] * count if tensor is None or count == 1 else tensor.chunk(count)


def affine_(z: Map, scale: Tensor | None, shift: Tensor | None) -> Map:
    """Scale and shift a map's channels in place."""
    if scale is not None and shift is not None:
        return torch.addcmul(shift, z, scale, out=z)
    return z if shift is None else z.add_(shift)


def map_of(x: Images) -> Map:
    """Return images as a map: a view of one image, and where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_images(rows: Map, shape: Sequence[int]) -> Images:
    """Return a map as images of this shape but for the channels, which are last in memory."""
    return rows.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)
