"""Convolutions of series (batch, channels, time) as functions of the saved input, and the convolution of a module."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from fedact.compression.operations import Convolution


@dataclass(frozen=True)
class Convolution1d:
    """``nn.Conv1d`` in every geometry: over pictures of one row, ``plane`` is the same convolution."""

    plane: Convolution

    @classmethod
    def of(cls, module: nn.Conv1d) -> "Convolution1d":
        """Return the geometry of a module."""
        (stride,), (dilation,), (kernel,) = module.stride, module.dilation, module.kernel_size
        common = (1, stride), (0, 0), (1, dilation), module.groups
        if module.padding_mode != "zeros":
            left, right = module._reversed_padding_repeated_twice
            return cls(Convolution(*common, module.padding_mode, (left, right, 0, 0)))
        if isinstance(module.padding, str):
            total = dilation * (kernel - 1) if module.padding == "same" else 0
            return cls(Convolution((1, stride), (0, total // 2), *common[2:], "constant", (0, total % 2, 0, 0)))
        (padding,) = module.padding
        return cls(Convolution((1, stride), (0, padding), *common[2:]))

    def forward(
        self, x: Float[Tensor, "batch channels time"], weight: Tensor, bias: Tensor | None
    ) -> Float[Tensor, "batch outputs steps"]:
        return self.plane.forward(x.unsqueeze(2), weight.unsqueeze(2), bias).squeeze(2)

    def weight_gradient(self, x: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        return self.plane.weight_gradient(x.unsqueeze(2), grad_output.unsqueeze(2), weight.unsqueeze(2)).squeeze(2)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor) -> Tensor:
        batch, channels, time = shape
        gradient = self.plane.input_gradient((batch, channels, 1, time), grad_output.unsqueeze(2), weight.unsqueeze(2))
        return gradient.squeeze(2)

    def bias_gradient(self, grad_output: Tensor) -> Tensor:
        return grad_output.sum((0, 2))


def convolution_of(module: nn.Module) -> Convolution | Convolution1d:
    """Return the operation of a convolution; raises TypeError for any other module."""
    if isinstance(module, nn.Conv2d):
        return Convolution.of(module)
    if isinstance(module, nn.Conv1d):
        return Convolution1d.of(module)
    raise TypeError(f"{type(module).__name__} is no convolution")
