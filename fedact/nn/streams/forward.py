"""The forward pass of a block in streams."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, Group, Images, Map, Tensors, affine_, as_images, map_of


def run(x: Images, geometry: Geometry, tensors: tuple[Tensor | None, ...], step: int) -> Images:
    """Return the block's output for x, with ``step`` of its wide channels at a time."""
    block, positions = Tensors.of(geometry, tensors), map_of(x)
    total: Map | None = None
    for group in block.groups(step):
        z = before_filter(x, positions, geometry, group)
        z = filtered(z if geometry.first is None else geometry.first.activate(z), geometry, group)
        shape, z = z.shape, geometry.depthwise.activate(map_of(z))
        total = torch.mm(z, group.columns) if total is None else total.addmm_(z, group.columns)
        del z
    assert total is not None
    return as_images(affine_(total, block.scale, block.shift), shape)


def before_filter(x: Images, positions: Map, geometry: Geometry, group: Group) -> Images:
    """Return some channels of the depthwise convolution's input before the activation; a slice of x without expansion.

    positions: x as a map.
    """
    if geometry.first is None:
        return x[:, group.j]
    if geometry.may_be_product and group.weight.shape[2:] == (1, 1):
        z, shape = torch.mm(positions, group.weight.flatten(1).t()), x.shape
    else:
        c = geometry.first.convolution
        images = F.conv2d(x, group.weight, None, c.stride, c.padding, c.dilation)
        z, shape = map_of(images).contiguous(), images.shape
    return as_images(affine_(z, group.scale, group.shift), shape)


def filtered(z: Images, geometry: Geometry, group: Group) -> Images:
    """Return the depthwise convolution's output with its norm, which is in the kernels, for some channels."""
    c = geometry.depthwise.convolution
    kernels = group.kernels if group.kernel_scale is None else group.kernels * group.kernel_scale
    return F.conv2d(z, kernels, group.kernel_shift, c.stride, c.padding, c.dilation, len(kernels))
