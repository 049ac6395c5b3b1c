"""The models by name: MobileNetV2, ResNets, MCUNet, torchvision's other classifiers and timm's, segmentation networks."""

from collections.abc import Callable

from torch import nn

from fedact.config.errors import ConfigError, nearest
from fedact.models.classifiers import build, classifier_names, imagenet_weights, to_model_layout, vision_transformer
from fedact.models.segmenters import SEGMENTERS, SegmentationNetwork, check_segmenter_name, encoder_of, make_segmenter
from fedact.models.temporal import SERIES_MODELS
from fedact.models.timm_networks import check_timm_name, is_timm, timm_network

__all__ = [
    "MODELS",
    "RESOLUTIONS",
    "SCALABLE",
    "SEGMENTERS",
    "SERIES_MODELS",
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


def mobilenet_v2(classes: int, width: float, resolution: int) -> nn.Module:
    """torchvision's MobileNetV2 with a width multiplier."""
    return build("mobilenet_v2", classes, width_mult=width)


def resnet18(classes: int, width: float, resolution: int) -> nn.Module:
    """torchvision's ResNet18 (its width is fixed)."""
    return build("resnet18", classes)


def resnet34(classes: int, width: float, resolution: int) -> nn.Module:
    """torchvision's ResNet34 (its width is fixed)."""
    return build("resnet34", classes)


def mcunet(classes: int, width: float, resolution: int) -> nn.Module:
    """MCUNet (mcunet-in1), 42 convolutions for microcontrollers; --weights takes its published file (its width is fixed)."""
    from fedact.models.mcunet import MCUNet

    return MCUNet(classes)


def vit_tiny(classes: int, width: float, resolution: int) -> nn.Module:
    """A small vision transformer: patches of 8 pixels, 12 layers of 192 channels, 3 heads (its width is fixed)."""
    return vision_transformer("vit_tiny", resolution, classes, 8, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)


MODELS: dict[str, Callable[[int, float, int], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "mcunet": mcunet,
    "vit_tiny": vit_tiny,
}
"""The one table of models, each a function of classes, width multiplier and pixels a side of the images.

``make_model`` also takes the name of any other classifier of torchvision, and ``timm:NAME``.
"""

SCALABLE = ("mobilenet_v2",)
"""Models with a width multiplier."""

RESOLUTIONS = {"mcunet": 128, "vit_tiny": 64}
"""Pixels a side of the images that a model's published weights were made for, where that is not 224."""


def make_model(
    name: str, classes: int, width: float | None = None, resolution: int | None = None, channels: int = 3
) -> nn.Module:
    """Return a classifier of this many classes with random weights.

    resolution: pixels a side of the images, for networks that are made for one size; None for the usual one. channels: of
    the series, for networks that take series. Raises ConfigError for an unknown name, or a size that the network does not
    take.
    """
    check_model_name(name)
    if name in SERIES_MODELS:
        return SERIES_MODELS[name](classes, channels)
    if is_timm(name):
        return timm_network(name, classes, resolution)
    if name in MODELS:
        return MODELS[name](classes, width or 1.0, resolution or RESOLUTIONS.get(name, 224))
    return build(name, classes, resolution)


def check_model_name(name: str) -> None:
    """Raise ConfigError for a model that is neither in a table nor a classifier of torchvision or timm."""
    if is_timm(name):
        check_timm_name(name)
    elif name not in MODELS and name not in SERIES_MODELS and name not in classifier_names():
        known = ", ".join(sorted([*MODELS, *SERIES_MODELS]))
        close = nearest(name, [*MODELS, *SERIES_MODELS, *classifier_names()])
        raise ConfigError(
            f"unknown model {name!r}: allowed are {known}, torchvision's other classifiers (--list) and timm:NAME{close}"
        )


def other_classifiers() -> list[str]:
    """Return the names of torchvision's classifiers that are not in the table."""
    return [name for name in classifier_names() if name not in MODELS]
