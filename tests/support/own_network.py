"""A small network for pictures and arrays that it can learn, as somebody would hand them to ``fedact.run``."""

import numpy as np
import torch
from torch import nn

from tests.support.own_code import FLEET


class Net(nn.Module):
    """One convolution, and a head on its means."""

    def __init__(self, classes: int, channels: int = 6) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, channels, 3, stride=2)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)).mean((2, 3)))


def build(classes: int) -> nn.Module:
    return Net(classes)


def data(count: int = 120, held: int = 80):
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, count)
    pictures = (random.normal(80, 25, (count, 12, 12, 3)) + 30 * labels[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return {"train": (pictures[:held], labels[:held]), "test": (pictures[held:], labels[held:])}


FEW = {**data(), **FLEET, "quiet": True}
"""Settings that fit both."""


def accuracy(model: nn.Module, preprocessing) -> float:
    """Return the accuracy on the test data, in plain PyTorch."""
    x, y = FEW["test"]
    with torch.no_grad():
        return float((model(preprocessing(x)).argmax(1) == torch.from_numpy(y)).float().mean())
