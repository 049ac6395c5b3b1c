"""The forward pass of a block in streams."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, Stage, add_product_, groups, product

Images = Float[Tensor, "batch channels rows columns"]


def run(x: Images, geometry: Geometry, tensors: tuple[Tensor | None, ...], step: int) -> Images:
    """Return the block's output for x, with ``step`` of its wide channels at a time."""
    first, depthwise, project = geometry.stages(tensors)
    weight = project.weight.flatten(1)
    y: Tensor | None = None
    for j in groups(len(depthwise.weight), step):
        z = before_filter(x, geometry, first, j)
        z = depthwise.activate(filtered(z if first is None else first.activate(z), depthwise, j))
        if y is None:
            y = z.new_empty(len(z), len(weight), *z.shape[2:])
            torch.bmm(weight[:, j].expand(len(z), -1, -1), z.flatten(2), out=y.view(len(z), len(weight), -1))
        else:
            add_product_(y.view(len(z), len(weight), -1), weight[:, j], z.flatten(2))
        del z
    assert y is not None
    return project.affine_(y, slice(None))


def before_filter(x: Images, geometry: Geometry, first: Stage | None, j: slice) -> Images:
    """Return some channels of the depthwise convolution's input before the activation; a slice of x without expansion."""
    if first is None:
        return x[:, j]
    weight = first.weight[j]
    if geometry.expands_pointwise and weight.shape[2:] == (1, 1):
        z = product(weight.flatten(1), x.flatten(2)).view(len(x), len(weight), *x.shape[2:])
    else:
        c = first.settings.convolution
        z = F.conv2d(x, weight, None, c.stride, c.padding, c.dilation)
    return first.affine_(z, j)


def filtered(z: Images, depthwise: Stage, j: slice) -> Images:
    """Return the depthwise convolution's output with its norm, which is in the kernels, for some channels."""
    c, weight = depthwise.settings.convolution, depthwise.weight[j]
    weight = weight if depthwise.scale is None else weight * depthwise.scale[j].unsqueeze(1)
    shift = None if depthwise.shift is None else depthwise.shift[j].flatten()
    return F.conv2d(z, weight, shift, c.stride, c.padding, c.dilation, len(weight))
