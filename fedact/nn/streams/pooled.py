"""A dense convolution and the pooling after it in streams: some channels at a time, so that its map is never whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.pooling import Windows
from fedact.nn.streams.arithmetic import TENSORS, Images, StageSettings, as_images, map_of, ranges
from fedact.nn.streams.backward import Totals
from fedact.nn.streams.source import Input, WholeInput
from fedact.torch_private import convolution_backward, max_pool2d_with_indices_backward

INDEX_BYTES = 8
"""Of the place of a maximum."""


@dataclass(frozen=True)
class PooledStage:
    """A convolution with its norm, its activation and the pooling; windows: of a max pooling, None for the global mean."""

    stage: StageSettings
    windows: Windows | None

    @classmethod
    def of(cls, stage: StageSettings, pooling: nn.Module) -> "PooledStage":
        """Return a stage with a module's pooling."""
        return cls(stage, Windows.of(pooling) if isinstance(pooling, nn.MaxPool2d) else None)

    def step(self, shape: torch.Size, weights: Sequence[Tensor], room: int, backward: bool = False) -> int:
        """Return how many channels at a time have their maps in ``room`` bytes, in either pass, at least one.

        shape: of the input. Alive at once are two maps, or three, the pooled one with its maxima's places, and a gradient of
        the weights.
        """
        (weight,) = weights
        rows, columns = self.stage.size((shape[2], shape[3]), weight)
        pooled = [1, 1] if self.windows is None else self.windows.output_size((rows, columns))
        size = (3 if self.stage.is_smooth else 2) * rows * columns * weight.element_size()
        size += pooled[0] * pooled[1] * (weight.element_size() + (0 if self.windows is None else INDEX_BYTES))
        channel = shape[0] * size + (0 if self.stage.convolution.is_pointwise(weight) else weight[0].nbytes)
        channels = len(weight)
        return -(-channels // -(-channels // max(1, min(channels, room // channel))))

    def run(self, x: Images, tensors: tuple[Tensor | None, ...], step: int) -> Images:
        """Return the pooled map of x, ``step`` of its channels at a time."""
        group, source, y = _Groups(self.stage, tensors), WholeInput(x), None
        for part in group.parts(step):
            some = self._pooled(self.stage.activate(group.convolved(source, part)))
            y = some.new_empty((len(x), group.channels, *some.shape[2:])) if y is None else y
            y[:, part.start : part.stop] = some
            del some
        assert y is not None
        return y

    def backward(
        self,
        gradient: Images,
        source: Input,
        tensors: tuple[Tensor | None, ...],
        totals: Totals,
        step: int,
        needs_input: bool,
    ) -> Images | None:
        """Add the weight's and the bias's gradients to the totals, and return the input's where it is needed."""
        group, result = _Groups(self.stage, tensors), None
        if needs_input:
            examples, channels, rows, columns = source.shape
            result = gradient.new_zeros((examples, rows, columns, channels)).permute(0, 3, 1, 2)
        for part in group.parts(step):
            z = group.convolved(source, part)
            y = self.stage.activate(z)
            z = z if self.stage.is_smooth else y
            wide = self._unpooled(gradient[:, part.start : part.stop], y)
            del y
            wide = self.stage.slope_times_(wide, z)
            del z
            group.add_gradients(wide, source, part, totals, result)
            del wide
        return result

    def _pooled(self, y: Images) -> Images:
        return y.mean((2, 3), keepdim=True) if self.windows is None else self.windows.pool(y)[0]

    def _unpooled(self, gradient: Images, y: Images) -> Images:
        """Return the gradient of the map y from that of the pooled one."""
        if self.windows is None:
            return torch.empty_like(y).copy_(gradient / (y.shape[2] * y.shape[3]))
        return max_pool2d_with_indices_backward(gradient, y, *self.windows, self.windows.pool(y)[1])


class _Groups:
    """The convolution of a stage with its norm, for some of its channels."""

    def __init__(self, stage: StageSettings, tensors: tuple[Tensor | None, ...]) -> None:
        weight = tensors[0]
        assert weight is not None
        self.c, self.weight, self.is_product = stage.convolution, weight, stage.convolution.is_pointwise(weight)
        self.scale, self.shift = stage.affine(tensors[:TENSORS])

    @property
    def channels(self) -> int:
        return len(self.weight)

    def parts(self, step: int) -> list[range]:
        """Return all channels, at most ``step`` at a time."""
        return ranges(self.channels, -(-self.channels // step))

    def convolved(self, source: Input, part: range) -> Images:
        """Return some channels of the convolution of the input, with the norm."""
        z = None
        for inputs in source.parts:
            some = self._some_convolved(source, part, inputs)
            z = some if z is None else z.add_(some)
            del some
        assert z is not None
        rows = slice(part.start, part.stop)
        if self.scale is not None and self.shift is not None:
            return torch.addcmul(self.shift[rows, None, None], z, self.scale[rows, None, None], out=z)
        return z if self.shift is None else z.add_(self.shift[rows, None, None])

    def _some_convolved(self, source: Input, part: range, inputs: range) -> Images:
        x, weight = source.channels(inputs), self.weight[part.start : part.stop, inputs.start : inputs.stop]
        if self.is_product:
            return as_images(torch.mm(map_of(x), weight.flatten(1).t()), x.shape)
        return F.conv2d(x, weight, None, self.c.stride, self.c.padding, self.c.dilation)

    def add_gradients(self, gradient: Images, source: Input, part: range, totals: Totals, result: Images | None) -> None:
        """Add what the gradient of some channels, which it scales, gives to the totals and to the input's gradient."""
        some = slice(part.start, part.stop)
        gradient = gradient if self.scale is None else gradient.mul_(self.scale[some, None, None])
        if totals.bias is not None:
            totals.bias[some] += gradient.sum((0, 2, 3))
        add = self._add_product if self.is_product else self._add_convolution
        if result is None and totals.weight is None:
            return
        for inputs in source.parts:
            columns = slice(inputs.start, inputs.stop)
            total = None if totals.weight is None else totals.weight[some, columns]
            below = None if result is None else result[:, columns]
            add(gradient, source.channels(inputs), self.weight[some, columns], total, below)

    def _add_product(self, gradient: Images, x: Images, weight: Tensor, total: Tensor | None, below: Tensor | None) -> None:
        if total is not None:
            total[:, :, 0, 0].addmm_(map_of(gradient).t(), map_of(x))
        if below is not None:
            map_of(below).addmm_(map_of(gradient), weight[:, :, 0, 0])

    def _add_convolution(
        self, gradient: Images, x: Images, weight: Tensor, total: Tensor | None, below: Tensor | None
    ) -> None:
        mask = [below is not None, total is not None, False]
        common = self.c.stride, self.c.padding, self.c.dilation, False, [0, 0], 1, mask
        input_gradient, sums, _ = convolution_backward(gradient, x, weight, None, *common)
        if below is not None:
            below.add_(input_gradient)
        if total is not None:
            total.add_(sums)
