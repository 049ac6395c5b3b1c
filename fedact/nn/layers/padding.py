"""Padding that repeats or mirrors its input, which saves the input's shape alone."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedact.nn.layers.base import made_class
from fedact.nn.layers.pooling import ShapeAlone

PADS: dict[Any, int] = {
    nn.ReflectionPad1d: 3,
    nn.ReplicationPad1d: 3,
    nn.ReflectionPad2d: 4,
    nn.ReplicationPad2d: 4,
    nn.ReflectionPad3d: 5,
    nn.ReplicationPad3d: 5,
}
"""Padding layers for which autograd would save the input, with the dimensions of a batch."""


@cache
def pad_class(plain: Any) -> Any:
    """Return the subclass of a padding layer that saves its input's shape alone."""

    def input_gradient(self: Any, grad_output: Tensor, like: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            x = like.detach().requires_grad_()
            return torch.autograd.grad(plain.forward(self, x), x, grad_output, create_graph=differentiable)[0]

    members = {"plain": plain, "dimensions": PADS[plain], "input_gradient": input_gradient}
    return made_class(pad_class, plain, f"Shape{plain.__name__}", (ShapeAlone, plain), **members)
