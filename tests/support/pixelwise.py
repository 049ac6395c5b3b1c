"""Segmentation networks for tests: built, given images and masks, and one measured step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.measure.memory import Memory
from fedact.models import make_segmenter

CLASSES, HEIGHT, WIDTH = 5, 64, 96
GATED = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
"""Those with squeeze and excitation, whose products keep both factors."""


def built(name: str, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return make_segmenter(name, classes).eval()


def batch(height: int = HEIGHT, width: int = WIDTH, examples: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (examples, height, width)
    return torch.randn(examples, 3, height, width, generator=generator), torch.randint(CLASSES, shape, generator=generator)


def loss_of(scores: Tensor, masks: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(scores, size=masks.shape[1:], mode="bilinear", align_corners=False), masks)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Memory:
    with fedact.measure_memory(model, inputs=(x, y)) as memory:
        loss_of(model(x), y).backward()
    return memory
