"""The models by name: MobileNetV2, ResNets, MCUNet, torchvision's other classifiers, and segmentation networks."""

from collections.abc import Callable

from torch import nn

from fedact.config.errors import ConfigError, nearest
from fedact.models.classifiers import build, classifier_names, imagenet_weights, to_model_layout
from fedact.models.segmenters import SEGMENTERS, SegmentationNetwork, check_segmenter_name, encoder_of, make_segmenter

__all__ = [
    "MODELS",
    "RESOLUTIONS",
    "SCALABLE",
    "SEGMENTERS",
    "SegmentationNetwork",
    "check_model_name",
    "check_segmenter_name",
    "encoder_of",
    "imagenet_weights",
    "make_model",
    "make_segmenter",
    "other_classifiers",
    "to_model_layout",
]


def mobilenet_v2(classes: int, width: float) -> nn.Module:
    """torchvision's MobileNetV2 with a width multiplier."""
    return build("mobilenet_v2", classes, width_mult=width)


def resnet18(classes: int, width: float) -> nn.Module:
    """torchvision's ResNet18 (its width is fixed)."""
    return build("resnet18", classes)


def resnet34(classes: int, width: float) -> nn.Module:
    """torchvision's ResNet34 (its width is fixed)."""
    return build("resnet34", classes)


def mcunet(classes: int, width: float) -> nn.Module:
    """MCUNet (mcunet-in1), 42 convolutions for microcontrollers; --weights takes its published file (its width is fixed)."""
    from fedact.models.mcunet import MCUNet

    return MCUNet(classes)


MODELS: dict[str, Callable[[int, float], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "mcunet": mcunet,
}
"""The one table of models; ``make_model`` also takes the name of any other classifier of torchvision."""

SCALABLE = ("mobilenet_v2",)
"""Models with a width multiplier."""

RESOLUTIONS = {"mcunet": 128}
"""Pixels a side of the images that a model's published weights were made for, where that is not 224."""


def make_model(name: str, classes: int, width: float | None = None) -> nn.Module:
    """Return a classifier of this many classes with random weights; raises ConfigError for an unknown name."""
    check_model_name(name)
    return MODELS[name](classes, width or 1.0) if name in MODELS else build(name, classes)


def check_model_name(name: str) -> None:
    """Raise ConfigError for a model that is neither in the table nor a classifier of torchvision."""
    if name not in MODELS and name not in classifier_names():
        known = ", ".join(sorted(MODELS))
        close = nearest(name, [*MODELS, *classifier_names()])
        raise ConfigError(f"unknown model {name!r}: allowed are {known} and torchvision's other classifiers (--list){close}")


def other_classifiers() -> list[str]:
    """Return the names of torchvision's classifiers that are not in the table."""
    return [name for name in classifier_names() if name not in MODELS]
