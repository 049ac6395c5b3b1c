"""The forward pass of a block in streams."""

import torch
from torch import Tensor

from fedact.nn.streams.arithmetic import Geometry, Group, Images, Map, Tensors, affine_, as_images, map_of
from fedact.nn.streams.source import Input, WholeInput


def run(x: Images, geometry: Geometry, tensors: tuple[Tensor | None, ...], step: int) -> Images:
    """Return the block's output for x, with ``step`` of its wide channels at a time."""
    block, source = Tensors.of(geometry, tensors), WholeInput(x)
    total: Map | None = None
    for group in block.groups(step):
        z = before_filter(source, geometry, group)
        z = z if geometry.first is None else geometry.first.activate(z)
        z = filtered(z, geometry, group)
        shape, z = z.shape, geometry.depthwise.activate(map_of(z))
        total = torch.mm(z, group.columns) if total is None else total.addmm_(z, group.columns)
        del z
    assert total is not None
    return as_images(affine_(total, block.scale, block.shift), shape)


def before_filter(source: Input, geometry: Geometry, group: Group) -> Images:
    """Return some channels of the depthwise convolution's input before the activation; those of x without expansion."""
    if geometry.first is None:
        return source.channels(group.channels)
    convolved = _product if group.weight.dim() == 2 else _convolution
    z, shape = convolved(source, geometry, group)
    return as_images(affine_(z, group.scale, group.shift), shape)


def _product(source: Input, geometry: Geometry, group: Group) -> tuple[Map, torch.Size]:
    """Return the 1 x 1 convolution of the input, and the shape of its images."""
    first, *others = source.parts
    weight = group.weight.t()
    z = torch.mm(source.rows(first), weight[: first.stop] if others else weight)
    for part in others:
        z.addmm_(source.rows(part), weight[part.start : part.stop])
    return z, source.shape


def _convolution(source: Input, geometry: Geometry, group: Group) -> tuple[Map, torch.Size]:
    """Return the convolution of the input, and the shape of its images."""
    assert geometry.first is not None
    c, images = geometry.first.convolution, None
    for part in source.parts:
        weight = group.weight[:, part.start : part.stop]
        some = torch.conv2d(source.channels(part), weight, None, c.stride, c.padding, c.dilation)
        images = some if images is None else images.add_(some)
        del some
    assert images is not None
    return map_of(images).contiguous(), images.shape


def filtered(z: Images, geometry: Geometry, group: Group) -> Images:
    """Return the depthwise convolution's output with its norm, which is in the kernels, for some channels."""
    c = geometry.depthwise.convolution
    kernels = group.kernels if group.kernel_scale is None else group.kernels * group.kernel_scale.view(-1, 1, 1, 1)
    return torch.conv2d(z, kernels, group.kernel_shift, c.stride, c.padding, c.dilation, len(group.channels))
