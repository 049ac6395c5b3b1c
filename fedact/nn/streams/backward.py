"""The backward pass of a block in streams: all its gradients from one pass over groups of channels."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, Group, Images, Input, Map, Tensors, as_images, map_of, split
from fedact.nn.streams.forward import before_filter, filtered
from fedact.torch_private import convolution_backward


class Totals(NamedTuple):
    """The tensors that a stage's gradients are added to, None for what is frozen."""

    weight: Tensor | None
    bias: Tensor | None


class GroupTotals(NamedTuple):
    """The parts of the totals that belong to some channels; columns: of the last weight's, transposed."""

    weight: Tensor | None
    bias: Tensor | None
    kernels: Tensor | None
    kernel_bias: Tensor | None
    columns: Tensor | None


class Backward:
    """One backward pass; made for a gradient, run once. totals: of first, depthwise and project."""

    def __init__(
        self, gradient: Images, source: Input, geometry: Geometry, tensors: tuple[Tensor | None, ...], totals: list[Totals]
    ) -> None:
        self.gradient, self.source = map_of(gradient), source
        self.geometry, self.block, self.totals = geometry, Tensors.of(geometry, tensors), totals
        self.scale = self.block.scale

    def run(self, step: int, needs_input: bool) -> Images | None:
        """Add the weights' and biases' gradients to the totals, and return the input's where it is needed."""
        bias = self.totals[-1].bias
        if bias is not None:
            sums = self.gradient.sum(0)
            bias.add_(sums if self.scale is None else sums.mul_(self.scale))
        if self.scale is not None and len(self.gradient) <= 2 * step:
            # Smaller than what scaled weights and their gradients of so many channels take.
            self.gradient, self.scale = self.gradient * self.scale, None
        result = self._empty_input_gradient() if needs_input else None
        below = None if result is None else map_of(result)
        groups = list(self.block.groups(step))
        for group, totals in zip(groups, self._group_totals(len(groups)), strict=True):
            z = before_filter(self.source, self.geometry, group)
            e = z if self.geometry.first is None else self.geometry.first.activate(z)
            gradient = self._through_depthwise(self._through_project(e, group, totals), e, group, totals, needs_input)
            del e
            if self.geometry.first is not None and gradient is not None:
                self._through_first(map_of(self.geometry.first.slope_times_(gradient, z)), below, group, totals)
            elif result is not None and gradient is not None:
                result[:, group.channels.start : group.channels.stop] = gradient
            del z, gradient
        return result

    def _empty_input_gradient(self) -> Images:
        examples, channels, rows, columns = self.source.shape
        make = self.gradient.new_empty if self.geometry.first is None else self.gradient.new_zeros
        return make(examples, rows, columns, channels).permute(0, 3, 1, 2)

    def _group_totals(self, count: int) -> list[GroupTotals]:
        first = self.totals[0] if self.geometry.first is not None else Totals(None, None)
        last = self.totals[-1].weight
        parts = *first, *self.totals[-2], None if last is None else last[:, :, 0, 0].t()
        return list(map(GroupTotals, *(split(part, count) for part in parts)))

    def _through_project(self, e: Images, group: Group, totals: GroupTotals) -> Images:
        """Return the gradient of the depthwise convolution's output with its norm; adds to the projection's total."""
        images = filtered(e, self.geometry, group)
        shape, z = images.shape, map_of(images)
        del images
        d = self.geometry.depthwise.activate(z)
        if totals.columns is not None and self.scale is None:
            totals.columns.addmm_(d.t(), self.gradient)
        elif totals.columns is not None and self.scale is not None:
            totals.columns.addcmul_(torch.mm(d.t(), self.gradient), self.scale)
        if not self.geometry.depthwise.is_smooth:
            z = d
        del d
        columns = group.columns if self.scale is None else group.columns * self.scale
        return as_images(self.geometry.depthwise.slope_times_(torch.mm(self.gradient, columns.t()), z), shape)

    def _through_depthwise(
        self, gradient: Images, e: Images, group: Group, totals: GroupTotals, needs_input: bool
    ) -> Images | None:
        """Return the gradient of the depthwise convolution's input; adds to its totals."""
        c, scale = self.geometry.depthwise.convolution, group.kernel_scale
        kernels = group.kernels if scale is None else group.kernels * scale
        if totals.kernel_bias is not None:
            sums = gradient.sum((0, 2, 3))
            totals.kernel_bias.add_(sums if scale is None else sums.mul_(scale.flatten()))
        mask = [needs_input or self.geometry.first is not None, totals.kernels is not None, False]
        if not any(mask):
            return None
        common = c.stride, c.padding, c.dilation, False, [0, 0], len(kernels), mask
        below, sums, _ = convolution_backward(gradient, e, kernels, None, *common)
        if totals.kernels is not None and scale is None:
            totals.kernels.add_(sums)
        elif totals.kernels is not None:
            totals.kernels.addcmul_(sums, scale)
        return below

    def _through_first(self, gradient: Map, below: Map | None, group: Group, totals: GroupTotals) -> None:
        """Add to the first convolution's totals and to the input's gradient."""
        assert self.geometry.first is not None
        gradient = gradient if group.scale is None else gradient.mul_(group.scale)
        if totals.bias is not None:
            totals.bias.add_(gradient.sum(0))
        weight, add = group.weight, self._add_product if self.geometry.is_product(group.weight) else self._add_convolution
        if totals.weight is None and below is None:
            return
        for part in self.source.parts:
            j = slice(part.start, part.stop)
            total = None if totals.weight is None else totals.weight[:, j]
            add(gradient, part, weight[:, j], total, None if below is None else below[:, j])

    def _add_product(self, gradient: Map, part: range, weight: Tensor, total: Tensor | None, below: Map | None) -> None:
        """Add to some input channels' totals, of a 1 x 1 convolution."""
        if total is not None:
            total[:, :, 0, 0].addmm_(gradient.t(), map_of(self.source.channels(part)))
        if below is not None:
            below.addmm_(gradient, weight[:, :, 0, 0])

    def _add_convolution(self, gradient: Map, part: range, weight: Tensor, total: Tensor | None, below: Map | None) -> None:
        """Add to some input channels' totals, of any convolution."""
        assert self.geometry.first is not None
        c, x = self.geometry.first.convolution, self.source.channels(part)
        images = as_images(gradient, (len(x), 0, *self.geometry.first.size((x.shape[2], x.shape[3]), weight)))
        mask = [below is not None, total is not None, False]
        common = c.stride, c.padding, c.dilation, False, [0, 0], 1, mask
        input_gradient, sums, _ = convolution_backward(images, x, weight, None, *common)
        if below is not None:
            below.add_(map_of(input_gradient))
        if total is not None:
            total.add_(sums)
