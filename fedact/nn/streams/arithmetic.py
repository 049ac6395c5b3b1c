"""The arithmetic of a stream: one group of channels through a stage, with nothing larger than its maps.

A map is a matrix with a row a position and a column a channel: so products, norms and sums need no copies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
        return F.relu_(z) if self.bounds[1] == inf else F.hardtanh_(z, *self.bounds)

    def slope_times_(self, gradient: Tensor, z: Tensor) -> Tensor:
        """Return the gradient times the activation's slope at z, in place where possible; a ReLU's z may be its output."""
        if self.bounds is None:
            return gradient if self.activation is None else self.activation.slope_times(gradient, z)
        if self.bounds[1] == inf:
            return threshold_backward_into(gradient, z, self.bounds[0], grad_input=gradient)
        return hardtanh_backward_into(gradient, z, *self.bounds, grad_input=gradient)


@dataclass(frozen=True)
class Geometry:
    """A block without its tensors; first: None where the depthwise convolution reads the block's input."""

    first: StageSettings | None
    depthwise: StageSettings
    project: StageSettings

    @cached_property
    def _moves_nothing(self) -> bool:
        c = None if self.first is None else self.first.convolution
        return c is not None and c.stride == (1, 1) and c.padding == (0, 0)

    def is_product(self, weight: Tensor) -> bool:
        """Tell whether the first convolution, with this weight, is a matrix product."""
        return self._moves_nothing and weight.shape[2:] == (1, 1)

    def step(self, x: Tensor, weights: tuple[Tensor, ...], room: int) -> int:
        """Return how many channels at a time have their maps in ``room`` bytes, backward as well, at least one.

        Alive at once are two maps of the depthwise input and one of its output, or one and two, and the kernels' gradients.
        """
        rows, columns = x.shape[2], x.shape[3]
        if self.first is not None:
            rows, columns = self.first.size((rows, columns), weights[0])
        after = self.depthwise.size((rows, columns), weights[-2])
        wide, narrow = len(x) * rows * columns, len(x) * after[0] * after[1]
        before = wide * (2 if self.first is not None and self.first.is_smooth else 1)
        elements = before + max((3 if self.depthwise.is_smooth else 2) * narrow, wide + narrow) + 2 * weights[-2][0].numel()
        channels = len(weights[-2])
        most = max(1, min(channels, room // (elements * x.element_size())))
        # As even as they can be.
        return -(-channels // -(-channels // most))


class Input(NamedTuple):
    """A block's input, whole or decoded some channels at a time.

    channels: returns those of a range. parts: the channels in ranges that may be decoded together.
    """

    shape: torch.Size
    channels: Callable[[range], Images]
    parts: Sequence[range]

    @classmethod
    def whole(cls, x: Images) -> "Input":
        """Return an input that is there."""

        def channels(part: range) -> Images:
            return x if len(part) == x.shape[1] else x[:, part.start : part.stop]

        return cls(x.shape, channels, [range(x.shape[1])])


class Group(NamedTuple):
    """Some channels of a block: the rows of its tensors that are theirs.

    weight, kernels, columns: of the first, the depthwise and the last convolution, the last one transposed (channels,
    outputs). scale, shift: of the first; kernel_scale (channels, 1, 1, 1), kernel_shift: of the depthwise one.
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
            weight, (scale, shift) = tensors[0], geometry.first.affine(tensors[:TENSORS])
        kernel_scale, kernel_shift = geometry.depthwise.affine(depthwise)
        kernel_scale = None if kernel_scale is None else kernel_scale.view(-1, 1, 1, 1)
        assert project[0] is not None
        columns = project[0].flatten(1).t()
        parts = weight, scale, shift, depthwise[0], kernel_scale, kernel_shift, columns
        return cls(parts, *geometry.project.affine(project))

    def groups(self, step: int) -> Iterator[Group]:
        """Yield all channels, at most ``step`` at a time."""
        columns = self.parts[-1]
        assert columns is not None
        count = -(-len(columns) // step)
        yield from map(Group, ranges(len(columns), count), *(split(part, count) for part in self.parts))


def ranges(channels: int, count: int) -> list[range]:
    """Return the places of the channels that ``split`` puts together."""
    step = -(-channels // count)
    return [range(start, min(start + step, channels)) for start in range(0, channels, step)]


def split(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Return a tensor's rows in ``count`` parts, or so many times None."""
    return [None] * count if tensor is None else tensor.chunk(count)


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
