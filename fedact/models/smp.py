"""Encoders, decoders and heads of segmentation-models-pytorch, traceable by torch.fx and without unused parts.

This module is imported only where that package is needed. Names of parameters are the package's.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3Decoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from segmentation_models_pytorch.encoders.mobilenet import MobileNetV2Encoder, mobilenet_encoders
from segmentation_models_pytorch.encoders.resnet import ResNetEncoder, resnet_encoders
from torch import Tensor, nn

from fedact.nn.layers.base import ChannelNorm

DEPTH = 5
"""The number of an encoder's stages."""
STRIDE = 8
"""The output stride of the dilated encoders, PSPNet's and DeepLabV3's."""
LAST, PYRAMID = (DEPTH,), (2, 3, 4, DEPTH)
"""The encoder stages that a decoder reads; other stages are not returned, so that the prefix has no unused outputs."""

Parts = tuple[nn.Module, nn.Module, nn.Module]
"""Encoder, decoder and head."""


class ResNetStages(ResNetEncoder):  # type: ignore[misc]
    """A ResNet without its head that returns the feature maps of ``stages``."""

    stages: tuple[int, ...] = LAST

    def forward(self, x: Tensor) -> list[Tensor]:
        features = super().forward(x)
        return [features[stage] for stage in self.stages]


class MobileNetV2Stages(MobileNetV2Encoder):  # type: ignore[misc]
    """A MobileNetV2 without its head that returns the feature maps of ``stages``."""

    stages: tuple[int, ...] = LAST

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.stages == LAST:
            return [self.features(x)]
        features = super().forward(x)
        return [features[stage] for stage in self.stages]


ENCODERS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "resnet18": (ResNetStages, resnet_encoders["resnet18"]["params"]),
    "mobilenet_v2": (MobileNetV2Stages, mobilenet_encoders["mobilenet_v2"]["params"]),
}
"""Encoders by name: the class, and the arguments of its constructor."""


class UPerNetFusion(UPerNetDecoder):  # type: ignore[misc]
    """UPerNet's decoder, which reads the four stages of its pyramid alone and does not change its input list."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(channels, encoder_depth=DEPTH)
        self.feature_norms = nn.ModuleList(ChannelNorm(channels[stage], eps=1e-6) for stage in PYRAMID)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        # Unpacked before anything else, so that at a cut the prefix's outputs are tensors and no list.
        stages = [features[place] for place in range(len(PYRAMID))]
        *lateral, lowest = [norm(x) for norm, x in zip(self.feature_norms, stages, strict=True)]
        merged = [self.psp(lowest)]
        for block, x in zip(self.fpn_lateral_blocks, reversed(lateral), strict=True):
            merged.append(block(merged[-1], x))
        merged[1:] = [block(x) for block, x in zip(self.fpn_conv_blocks, merged[1:], strict=True)]
        size = merged[-1].shape[2:]
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in reversed(merged)]
        y: Tensor = self.fusion_block(torch.cat(resized, dim=1))
        return y


def pspnet(encoder: str, classes: int) -> Parts:
    """Return PSPNet on all stages of an encoder, dilated to a stride of 8.

    Source: Zhao et al., CVPR 2017.
    """
    stages = _encoder(encoder, LAST, STRIDE)
    return _initialized(stages, PSPDecoder(stages.out_channels), SegmentationHead(512, classes, kernel_size=3))


def deeplabv3(encoder: str, classes: int) -> Parts:
    """Return DeepLabV3 on all stages of an encoder, dilated to a stride of 8, with rates 12, 24 and 36.

    Source: Chen et al., arXiv 1706.05587.
    """
    stages = _encoder(encoder, LAST, STRIDE)
    decoder = DeepLabV3Decoder(stages.out_channels[-1], 256, (12, 24, 36), aspp_separable=False, aspp_dropout=0.5)
    # The package initialises this decoder as PyTorch does.
    return stages, decoder, SegmentationHead(256, classes, kernel_size=1)


def upernet(encoder: str, classes: int) -> Parts:
    """Return UPerNet on the four last stages of an encoder.

    Source: Xiao et al., ECCV 2018.
    """
    stages = _encoder(encoder, PYRAMID)
    return _initialized(stages, UPerNetFusion(stages.out_channels), SegmentationHead(256, classes, kernel_size=1))


def _encoder(name: str, stages: tuple[int, ...], stride: int | None = None) -> Any:
    """Return an encoder that returns these stages, dilated to an output stride, None for its usual one."""
    kind, settings = ENCODERS[name]
    encoder: Any = kind(depth=DEPTH, **settings)
    encoder.stages = stages
    if stride:
        _dilate(encoder, stride)
    return encoder


def _dilate(encoder: Any, stride: int) -> None:
    """Replace an encoder's last strides by dilation, in place.

    A convolution that loses its stride reads the same input as before, so its dilation is the previous stage's: half of
    what the package gives it, with which a classifier's pretrained weights would fit less well.
    """
    strided = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d) and max(layer.stride) > 1]
    encoder.make_dilated(stride)
    for layer in strided:
        if max(layer.stride) == 1:
            layer.dilation = tuple(size // 2 for size in layer.dilation)
            layer.padding = tuple(size * (reach // 2) for size, reach in zip(layer.dilation, layer.kernel_size, strict=True))


def _initialized(encoder: nn.Module, decoder: nn.Module, head: nn.Module) -> Parts:
    """Return the three with the decoder's and the head's weights initialised in the package's way."""
    initialize_decoder(decoder)
    initialize_head(head)
    return encoder, decoder, head
