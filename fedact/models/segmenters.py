"""Networks that give every pixel a class: those of segmentation-models-pytorch, and torchvision's by their names there.

Their scores come at the decoder's own resolution; whoever reads them scales them up.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from fedact.errors import ConfigError, unknown

PACKAGE = "segmentation_models_pytorch"

Images = Float[Tensor, "batch 3 height width"]
Scores = Float[Tensor, "batch classes rows columns"]


class Segmenter(nn.Module):
    """An encoder that returns a list of feature maps, a decoder that makes one of them, and a head."""

    head_name = "segmentation_head.0"

    def __init__(self, encoder: nn.Module, decoder: nn.Module, segmentation_head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = encoder, decoder, segmentation_head

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.segmentation_head(self.decoder(self.encoder(x)))
        return scores


class BackboneSegmenter(nn.Module):
    """One of torchvision's networks: a backbone that returns named feature maps, and a classifier of one of them."""

    head_name = "classifier.4"
    aux_classifier = None
    """Published weights have one, which only their training needed."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.classifier(self.backbone(x)["out"])
        return scores


class LiteSegmenter(BackboneSegmenter):
    """torchvision's LR-ASPP, whose scores are the sum of two heads'."""

    head_name = ("classifier.low_classifier", "classifier.high_classifier")  # type: ignore[assignment]

    def forward(self, x: Images) -> Scores:
        scores: Tensor = self.classifier(self.backbone(x))
        return scores


def _of_smp(decoder: str, encoder: str, classes: int) -> nn.Module:
    _check_installed(f"{decoder}_{encoder}")
    from fedact.models import smp

    return Segmenter(*getattr(smp, decoder)(encoder, classes))


def _of_torchvision(name: str, classes: int, kind: type[BackboneSegmenter] = BackboneSegmenter) -> nn.Module:
    from torchvision.models import get_model

    built: Any = get_model(name, weights=None, weights_backbone=None, num_classes=classes)
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
"""The one table of segmentation networks, by what builds them for a number of classes."""


def make_segmenter(name: str, classes: int) -> nn.Module:
    """Return a network that gives scores (examples, classes, rows, columns), with random weights.

    Raises ConfigError for an unknown name, and where the extra that it needs is not installed.
    """
    check_segmenter_name(name)
    return SEGMENTERS[name](classes)


def check_segmenter_name(name: str) -> None:
    """Raise ConfigError for a network that is not in the table."""
    if name not in SEGMENTERS:
        raise unknown("segmentation model", name, SEGMENTERS)


def _check_installed(name: str) -> None:
    if find_spec(PACKAGE) is None:
        raise ConfigError(f"{name} needs the extra segmentation, which is not installed: pip install -e '.[segmentation]'")
