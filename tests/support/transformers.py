"""Small transformers: torchvision's ViT and Swin, timm's, and PyTorch's own attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 5


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value, for some start at zero, and switch off what is random in a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if name.endswith(("bias_table", "pos_embedding", "class_token")) else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)
    for module in model.modules():
        if type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0
    return model


def vit(**settings) -> nn.Module:
    from torchvision.models import VisionTransformer

    return randomized(VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=CLASSES, **settings))


def swin(version: int = 1, window: int = 4) -> nn.Module:
    from torchvision.models import SwinTransformer
    from torchvision.models.swin_transformer import (
        PatchMerging,
        PatchMergingV2,
        SwinTransformerBlock,
        SwinTransformerBlockV2,
    )

    kinds = (SwinTransformerBlock, PatchMerging) if version == 1 else (SwinTransformerBlockV2, PatchMergingV2)
    settings = {"block": kinds[0], "downsample_layer": kinds[1], "stochastic_depth_prob": 0.0}
    return randomized(SwinTransformer([2, 2], 12, [2, 1], [2, 3], [window, window], num_classes=CLASSES, **settings))


def timm_vit(**settings) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return randomized(
        VisionTransformer(32, 8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2, num_classes=CLASSES, **settings)
    )


def timm_deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return randomized(
        VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=CLASSES)
    )


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return randomized(
        SwinTransformer(32, 4, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4, num_classes=CLASSES)
    )


class Encoder(nn.Module):
    """Columns of a picture as tokens of PyTorch's encoder."""

    def __init__(self, norm_first: bool = True, activation: str | nn.Module = "relu") -> None:
        super().__init__()
        self.tokens = nn.Linear(96, 24)
        layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, activation, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.tokens(x.flatten(1, 2).transpose(1, 2))).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (vit, 32),
    "swin": (swin, 40),
    "swin, odd": (swin, 28),
    "swin v2": (lambda: swin(2), 40),
    "timm's vit": (timm_vit, 32),
    "timm's deit": (timm_deit, 32),
    "timm's swin": (timm_swin, 32),
    "encoder": (lambda: randomized(Encoder(activation=nn.GELU())), 32),
    "encoder, ReLU": (lambda: randomized(Encoder(norm_first=False)), 32),
}
"""Networks by name, each with the pixels a side of its pictures."""


def batch(size: int, examples: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(examples, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, torch.arange(examples) % CLASSES
