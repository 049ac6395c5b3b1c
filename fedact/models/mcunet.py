"""MCUNet, a network for microcontrollers (the papers' mcunet-in1), which no maintained package has."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedact.vision import ops

STEM = 16
BLOCKS = (
    (0, 3, 1, 8), (32, 3, 2, 16), (48, 3, 1, 16), (48, 7, 2, 24), (120, 3, 1, 24), (120, 3, 2, 40), (160, 7, 1, 40),
    (160, 5, 1, 48), (144, 3, 1, 48), (192, 3, 1, 48), (240, 7, 2, 96), (384, 5, 1, 96), (384, 5, 1, 96), (576, 3, 1, 160),
)  # fmt: skip
"""Expanded channels (0: no expansion), kernel, stride and output channels of every inverted residual block."""


class Block(nn.Module):
    """An inverted residual block: expand, convolve depthwise, project; the input is added where the shapes agree."""

    def __init__(self, channels: int, expanded: int, kernel: int, stride: int, out: int) -> None:
        super().__init__()
        wide = expanded or channels
        self.residual = stride == 1 and channels == out
        self.pointwise1 = _convolution(channels, wide, 1) if expanded else nn.Identity()
        self.depthwise = _convolution(wide, wide, kernel, stride, groups=wide)
        self.pointwise2 = _convolution(wide, out, 1, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise2(self.depthwise(self.pointwise1(x)))
        return x + y if self.residual else y


class MCUNet(nn.Module):
    """42 convolutions with batch norm, and a linear head on 160 features.

    Source: Lin et al., MCUNet, NeurIPS 2020; the numbers are those of its published ImageNet network.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [STEM, *(out for *_, out in BLOCKS)]
        self.first_conv = _convolution(3, STEM, 3, 2)
        self.blocks = nn.Sequential(*(Block(width, *block) for width, block in zip(widths[:-1], BLOCKS, strict=True)))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        scores: Tensor = self.classifier(self.blocks(self.first_conv(x)).mean((2, 3)))
        return scores

    def to_model_layout(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights by this model's parameter names, from these or from the published file.

        The published network has its batch norms folded into the convolutions' biases, and a 1 x 1 convolution as its
        classifier. A bias becomes a batch norm that adds it and does nothing else, so the outputs are the same.
        """
        if "first_conv.bias" not in tensors:
            return dict(tensors)
        layers: dict[str, nn.Module] = dict(self.named_modules())
        result: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            layer, _, kind = name.rpartition(".")
            if not isinstance(layers.get(layer), ops.Conv2dNormActivation):
                result[name] = tensor.flatten(1) if layer == "classifier" and kind == "weight" else tensor
            elif kind == "weight":
                result[f"{layer}.0.weight"] = tensor
            else:
                result |= {f"{layer}.1.{key}": value for key, value in _identity_plus(tensor).items()}
        return result


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
) -> nn.Module:
    activation = nn.ReLU6 if activated else None
    block: nn.Module = ops.Conv2dNormActivation(channels, out, kernel, stride, groups=groups, activation_layer=activation)
    return block


def _identity_plus(bias: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a batch norm that adds a bias and does nothing else."""
    return {
        "weight": torch.ones_like(bias),
        "bias": bias,
        "running_mean": torch.zeros_like(bias),
        "running_var": torch.ones_like(bias) - nn.BatchNorm2d(1).eps,
        "num_batches_tracked": torch.tensor(0),
    }
