"""What can be trained: torchvision's networks, with their own head for the task's classes."""

from collections.abc import Callable
from typing import Any

from torch import nn


def mobilenet_v2(classes: int, width: float) -> nn.Module:
    """Return torchvision's MobileNetV2 with a width multiplier."""
    from torchvision.models import mobilenet_v2 as build

    model: nn.Module = build(num_classes=classes, width_mult=width)
    return model


def resnet18(classes: int, width: float) -> nn.Module:
    """Return torchvision's ResNet18 (its width is fixed)."""
    from torchvision.models import resnet18 as build

    model: nn.Module = build(num_classes=classes)
    return model


def resnet34(classes: int, width: float) -> nn.Module:
    """Return torchvision's ResNet34 (its width is fixed)."""
    from torchvision.models import resnet34 as build

    model: nn.Module = build(num_classes=classes)
    return model


MODELS: dict[str, Callable[[int, float], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
}
"""The one table of models."""

SCALABLE = ("mobilenet_v2",)
"""Models with a width multiplier."""


def imagenet_weights(model: str) -> Any:
    """Return torchvision's best ImageNet weights of a model: an enum with ``get_state_dict`` and ``transforms``."""
    from torchvision.models import get_model_weights

    return get_model_weights(model).DEFAULT
