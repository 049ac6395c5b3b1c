"""The backward pass of a block in streams: all its gradients from one pass over groups of channels."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, add_outer_, add_product_, groups, product
from fedact.nn.streams.forward import Images, before_filter, filtered
from fedact.torch_private import convolution_backward


class Totals(NamedTuple):
    """The tensors that a stage's gradients are added to, None for what is frozen."""

    weight: Tensor | None
    bias: Tensor | None


class Backward:
    """One backward pass; made for a gradient, run once. totals: of first, depthwise and project."""

    def __init__(
        self, gradient: Images, x: Images, geometry: Geometry, tensors: tuple[Tensor | None, ...], totals: list[Totals]
    ) -> None:
        self.gradient, self.x, self.geometry = gradient, x, geometry
        self.first, self.depthwise, self.project = geometry.stages(tensors)
        self.totals = totals

    def run(self, step: int, needs_input: bool) -> Images | None:
        """Add the weights' and biases' gradients to the totals, and return the input's where it is needed."""
        weight, bias = self.totals[-1]
        rows = self.gradient.flatten(2)
        scale = None if self.project.scale is None else self.project.scale.flatten(1)
        if bias is not None:
            bias.add_(rows.sum((0, 2)) if scale is None else rows.sum((0, 2)).mul_(scale[:, 0]))
        if scale is not None and rows.numel() <= len(rows[0]) * step * 2:
            # Smaller than what scaled weights and their gradients of so many channels take.
            rows, scale = rows * scale, None
        result = self._empty_input_gradient() if needs_input else None
        for j in groups(len(self.depthwise.weight), step):
            z, e = self._input(j)
            gradient = self._through_project(e, rows, scale, weight, j)
            below = self._through_depthwise(gradient, e, j, self.first is not None or needs_input)
            del gradient, e
            if self.first is not None:
                assert below is not None
                below = self.first.slope_times_(below, z)
                del z
                self._through_first(below, result, j)
            elif result is not None and below is not None:
                result[:, j] = below
            del below
        return result

    def _empty_input_gradient(self) -> Images:
        empty = torch.empty_like if self.first is None else torch.zeros_like
        return empty(self.x, memory_format=torch.contiguous_format)

    def _input(self, j: slice) -> tuple[Tensor, Tensor]:
        """Return the depthwise convolution's input, and what its activation's slope is found from."""
        z = before_filter(self.x, self.geometry, self.first, j)
        e = z.contiguous() if self.first is None else self.first.activate(z)
        return z, e

    def _through_project(self, e: Images, rows: Tensor, scale: Tensor | None, total: Tensor | None, j: slice) -> Images:
        """Return the gradient of the depthwise convolution's output with its norm; adds to the projection's total."""
        z = filtered(e, self.depthwise, j)
        d = self.depthwise.activate(z)
        shape = d.shape
        if total is not None:
            add_outer_(total[:, j, 0, 0], rows, d.flatten(2), scale)
        if not self.depthwise.settings.is_smooth:
            z = d
        del d
        weight = self.project.weight[:, j, 0, 0]
        weight = weight if scale is None else weight * scale
        return self.depthwise.slope_times_(product(weight.t(), rows).view(shape), z)

    def _through_depthwise(self, gradient: Images, e: Images, j: slice, needs_input: bool) -> Images | None:
        """Return the gradient of the depthwise convolution's input; adds to its totals."""
        total, bias = self.totals[-2]
        settings, weight, scale = self.depthwise.settings.convolution, self.depthwise.weight[j], self.depthwise.scale
        scaled = weight if scale is None else weight * scale[j].unsqueeze(1)
        if bias is not None:
            sums = gradient.sum((0, 2, 3))
            bias[j].add_(sums if scale is None else sums.mul_(scale[j].flatten()))
        if not needs_input and total is None:
            return None
        mask = [needs_input, total is not None, False]
        common = settings.stride, settings.padding, settings.dilation, False, [0, 0], len(weight), mask
        below, sums, _ = convolution_backward(gradient, e, scaled, None, *common)
        if total is not None and scale is None:
            total[j].add_(sums)
        elif total is not None and scale is not None:
            total[j].addcmul_(sums, scale[j].unsqueeze(1))
        return below

    def _through_first(self, gradient: Images, result: Images | None, j: slice) -> None:
        """Add to the first convolution's totals and to the input's gradient."""
        first, (total, bias) = self.first, self.totals[0]
        assert first is not None
        gradient = gradient if first.scale is None else gradient.mul_(first.scale[j])
        if bias is not None:
            bias[j].add_(gradient.sum((0, 2, 3)))
        weight = first.weight[j]
        if self.geometry.expands_pointwise and weight.shape[2:] == (1, 1):
            if total is not None:
                add_outer_(total[j, :, 0, 0], gradient.flatten(2), self.x.flatten(2))
            if result is not None:
                add_product_(result.flatten(2), weight[:, :, 0, 0].t(), gradient.flatten(2))
            return
        c, mask = first.settings.convolution, [result is not None, total is not None, False]
        if any(mask):
            common = c.stride, c.padding, c.dilation, False, [0, 0], 1, mask
            below, sums, _ = convolution_backward(gradient, self.x, weight, None, *common)
            if result is not None:
                result.add_(below)
            if total is not None:
                total[j].add_(sums)
