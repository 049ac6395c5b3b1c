"""Networks for series (batch, channels, steps), by name."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

STAGES = ((32, 1), (64, 2), (64, 1), (64, 2))
"""Output channels and stride of every residual block."""


class Block(nn.Module):
    """Two convolutions of three steps with batch norm, whose output is added to the input, or to a projection of it."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1, self.relu1 = (
            _convolution(channels, out, 3, stride),
            nn.BatchNorm1d(out),
            nn.ReLU(inplace=True),
        )
        self.conv2, self.norm2, self.relu2 = _convolution(out, out, 3), nn.BatchNorm1d(out), nn.ReLU(inplace=True)
        same = (channels, stride) == (out, 1)
        self.shortcut = None if same else nn.Sequential(_convolution(channels, out, 1, stride), nn.BatchNorm1d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        z: Tensor = self.relu2(y + (x if self.shortcut is None else self.shortcut(x)))
        return z


class TemporalResNet(nn.Module):
    """A residual network for series: 11 convolutions, a mean over time and a linear head.

    channels: of the series. 82,822 parameters for six channels and six classes.

    >>> import torch
    >>> TemporalResNet(classes=6, channels=6)(torch.rand(2, 6, 128)).shape
    torch.Size([2, 6])
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        width, blocks = STAGES[0][0], list[Block]()
        self.stem = nn.Sequential(_convolution(channels, width, 7), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        for out, stride in STAGES:
            blocks.append(Block(width, out, stride))
            width = out
        self.blocks, self.pool = nn.Sequential(*blocks), nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "batch channels steps"]) -> Float[Tensor, "batch classes"]:
        scores: Tensor = self.head(self.pool(self.blocks(self.stem(x))).flatten(1))
        return scores


def _convolution(channels: int, out: int, taps: int, stride: int = 1) -> nn.Conv1d:
    return nn.Conv1d(channels, out, taps, stride, taps // 2, bias=False)


def temporal_resnet(classes: int, channels: int) -> nn.Module:
    """A residual network for series (channels, steps): 11 convolutions, 82,822 parameters (its width is fixed)."""
    return TemporalResNet(classes, channels)


SERIES_MODELS: dict[str, Callable[[int, int], nn.Module]] = {"temporal_resnet": temporal_resnet}
"""The one table of networks for series, each a function of classes and channels."""
