"""The backward pass of a block in streams: all its gradients from one pass over groups of channels."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, Group, Images, Map, Tensors, as_images, map_of, split
from fedact.nn.streams.forward import before_filter, filtered
from fedact.nn.streams.source import Input
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
        bias, first = self.totals[-1].bias, self.geometry.first
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
            e = z if first is None else first.activate(z)
            gradient = self._through_depthwise(self._through_project(e, group, totals), e, group, totals, needs_input)
            del e
            if gradient is None:
                continue
            if first is not None:
                rows = first.slope_times_(map_of(gradient), map_of(z))
                del z, gradient
                self._through_first(rows, below, group, totals)
                del rows
            elif result is not None:
                result[:, group.channels.start : group.channels.stop] = gradient
        return result

    def _empty_input_gradient(self) -> Images:
        examples, channels, rows, columns = self.source.shape
        make = self.gradient.new_empty if self.geometry.first is None else self.gradient.new_zeros
        return make(examples, rows, columns, channels).permute(0, 3, 1, 2)

    def _group_totals(self, count: int) -> list[GroupTotals]:
        first = self.totals[0] if self.geometry.first is not None else Totals(None, None)
        last = self.totals[-1].weight
        columns = None if last is None else last[:, :, 0, 0].t()
        parts = self.geometry.matrix(first.weight), first.bias, *self.totals[-2], columns
        return list(map(GroupTotals, *(split(part, count) for part in parts)))

    def _through_project(self, e: Images, group: Group, totals: GroupTotals) -> Images:
        """Return the gradient of the depthwise convolution's output, before its norm; adds to the projection's total."""
        images, depthwise = filtered(e, self.geometry, group), self.geometry.depthwise
        shape, z = images.shape, map_of(images)
        del images
        d = depthwise.activate(z)
        columns, scale = group.columns, self.scale
        if totals.columns is not None and scale is None:
            totals.columns.addmm_(d.t(), self.gradient)
        elif totals.columns is not None and scale is not None:
            totals.columns.addcmul_(torch.mm(d.t(), self.gradient), scale)
        if not depthwise.is_smooth:
            z = d
        del d
        gradient = torch.mm(self.gradient, (columns if scale is None else columns * scale).t())
        gradient = depthwise.slope_times_(gradient, z)
        return as_images(gradient if group.kernel_scale is None else gradient.mul_(group.kernel_scale), shape)

    def _through_depthwise(
        self, gradient: Images, e: Images, group: Group, totals: GroupTotals, needs_input: bool
    ) -> Images | None:
        """Return the gradient of the depthwise convolution's input; adds to its totals."""
        c = self.geometry.depthwise.convolution
        if totals.kernel_bias is not None:
            totals.kernel_bias.add_(gradient.sum((0, 2, 3)))
        mask = [needs_input or self.geometry.first is not None, totals.kernels is not None, False]
        if not any(mask):
            return None
        common = c.stride, c.padding, c.dilation, False, [0, 0], len(group.channels), mask
        below, sums, _ = convolution_backward(gradient, e, group.kernels, None, *common)
        if totals.kernels is not None:
            totals.kernels.add_(sums)
        return below

    def _through_first(self, gradient: Map, below: Map | None, group: Group, totals: GroupTotals) -> None:
        """Add to the first convolution's totals and to the input's gradient."""
        gradient = gradient if group.scale is None else gradient.mul_(group.scale)
        if totals.bias is not None:
            totals.bias.add_(gradient.sum(0))
        if totals.weight is None and below is None:
            return
        if group.weight.dim() == 2:
            self._add_product(gradient, group.weight, totals.weight, below)
        else:
            self._add_convolution(gradient, group.weight, totals.weight, below)

    def _add_product(self, gradient: Map, weight: Tensor, total: Tensor | None, below: Map | None) -> None:
        """Add to the totals of a 1 x 1 convolution."""
        if below is not None:
            below.addmm_(gradient, weight)
        if total is None:
            return
        columns = gradient.t()
        for part in self.source.parts:
            of_part = total if len(self.source.parts) == 1 else total[:, part.start : part.stop]
            of_part.addmm_(columns, self.source.rows(part))

    def _add_convolution(self, gradient: Map, weight: Tensor, total: Tensor | None, below: Map | None) -> None:
        """Add to the totals of any other convolution."""
        assert self.geometry.first is not None
        c, (examples, _, rows, columns) = self.geometry.first.convolution, self.source.shape
        images = as_images(gradient, (examples, 0, *self.geometry.first.size((rows, columns), weight)))
        common = c.stride, c.padding, c.dilation, False, [0, 0], 1, [below is not None, total is not None, False]
        for part in self.source.parts:
            j = slice(part.start, part.stop)
            input_gradient, sums, _ = convolution_backward(images, self.source.channels(part), weight[:, j], None, *common)
            if below is not None:
                below[:, j].add_(map_of(input_gradient))
            if total is not None:
                total[:, j].add_(sums)
