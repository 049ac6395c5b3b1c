"""Segmentation networks of segmentation-models-pytorch and torchvision, in one table.

Their scores are at the decoder's own resolution: the loss and the metrics interpolate them to the masks'.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fedact.config.errors import check_extra, unknown

HEADS = ("fc.", "classifier.")
"""How the names of parameters in the heads of torchvision's classifiers begin."""

Images = Float[Tensor, "batch 3 height width"]
Scores = Float[Tensor, "batch classes rows columns"]


class SegmentationNetwork(nn.Module):
    """A network from images to scores (examples, classes, rows, columns), whose encoder is part of a classifier.

    head_name: names of the last layer or layers, whose outputs are the scores. encoder_name: name of the encoder module.
    """

    head_name: str | tuple[str, ...]
    encoder_name: str

    def encoder_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a torchvision classifier's weights by this network's parameter names, without the classifier's head."""
        raise NotImplementedError


class Segmenter(SegmentationNetwork):
    """An encoder that returns a list of feature maps, a decoder that merges them into one, and a head."""

    head_name = "segmentation_head.0"
    encoder_name = "encoder"

    def __init__(self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = encoder, decoder, segmentation_head

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return scores

    def encoder_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"encoder.{name}": tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}


class BackboneSegmenter(SegmentationNetwork):
    """A torchvision network: a backbone that returns named feature maps, and a classifier of the one named "out"."""

    head_name: str | tuple[str, ...] = "classifier.4"
    encoder_name = "backbone"
    aux_classifier = None
    """Published weights have an auxiliary classifier, which only their training needed; None here."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.classifier(self.backbone(x)["out"])
        return scores

    def encoder_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        headless = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
        return {f"backbone.{name.removeprefix('features.')}": tensor for name, tensor in headless.items()}


class LiteSegmenter(BackboneSegmenter):
    """torchvision's LR-ASPP, whose scores are the sum of two heads' outputs."""

    head_name = ("classifier.low_classifier", "classifier.high_classifier")

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.classifier(self.backbone(x))
        return scores


def _of_smp(decoder: str, encoder: str, classes: int) -> nn.Module:
    check_extra("segmentation", f"{decoder}_{encoder}")
    from fedact.models import smp

    return Segmenter(*getattr(smp, decoder)(encoder, classes))


def _of_torchvision(name: str, classes: int, kind: type[BackboneSegmenter] = BackboneSegmenter) -> nn.Module:
    from fedact.vision import models

    built: Any = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return kind(built.backbone, built.classifier)


SEGMENTERS: dict[str, Callable[[int], nn.Module]] = {
    "pspnet_resnet18": partial(_of_smp, "pspnet", "resnet18"),
    "pspnet_mobilenet_v2": partial(_of_smp, "pspnet", "mobilenet_v2"),
    "deeplabv3_resnet18": partial(_of_smp, "deeplabv3", "resnet18"),
    "deeplabv3_mobilenet_v2": partial(_of_smp, "deeplabv3", "mobilenet_v2"),
    "upernet_resnet18": partial(_of_smp, "upernet", "resnet18"),
    "upernet_mobilenet_v2": partial(_of_smp, "upernet", "mobilenet_v2"),
    "fcn_resnet50": partial(_of_torchvision, "fcn_resnet50"),
    "fcn_resnet101": partial(_of_torchvision, "fcn_resnet101"),
    "deeplabv3_resnet50": partial(_of_torchvision, "deeplabv3_resnet50"),
    "deeplabv3_resnet101": partial(_of_torchvision, "deeplabv3_resnet101"),
    "deeplabv3_mobilenet_v3_large": partial(_of_torchvision, "deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": partial(_of_torchvision, "lraspp_mobilenet_v3_large", kind=LiteSegmenter),
}
"""The one table of segmentation networks: a function from the number of classes to a network with random weights."""


def make_segmenter(name: str, classes: int) -> nn.Module:
    """Return a segmentation network with random weights.

    Raises ConfigError for an unknown name, and where the extra that it needs is not installed.
    """
    check_segmenter_name(name)
    return SEGMENTERS[name](classes)


def encoder_of(name: str) -> str:
    """Return the name of the classifier whose layers are a network's encoder: "resnet18" for "pspnet_resnet18"."""
    return name.partition("_")[2]


def check_segmenter_name(name: str) -> None:
    """Raise ConfigError for a network that is not in the table."""
    if name not in SEGMENTERS:
        raise unknown("segmentation model", name, SEGMENTERS)
