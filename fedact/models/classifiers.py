"""torchvision's classifiers: building them by name, and their published weights."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor, nn

from fedact.config.errors import ConfigError

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with auxiliary heads, which are left out: only training from scratch needs them."""

RENAMED = {
    r"(\.denselayer\d+\.(?:norm|conv))\.(\d)\.": r"\1\2.",
    r"\.mlp\.linear_1\.": ".mlp.0.",
    r"\.mlp\.linear_2\.": ".mlp.3.",
}
"""Parameter names in torchvision's published files (DenseNet, ViT), as patterns, and their names in its current models."""

VIT = r"vit_[a-z]_(\d+)"
"""The names of torchvision's vision transformers, with the pixels of their patches."""

COUNTER = "num_batches_tracked"


def classifier_names() -> list[str]:
    """Return the names of every classifier that torchvision has."""
    from fedact.vision import models

    names: list[str] = models.list_models(module=models)
    return names


def build(name: str, classes: int, resolution: int | None = None, **settings: Any) -> nn.Module:
    """Return one of torchvision's classifiers with random weights, without auxiliary heads.

    resolution: pixels a side of the images, where that is part of the network (ViT). Raises ConfigError for one that its
    patches do not fit in.
    """
    from fedact.vision import models

    if resolution is not None and (patch := re.fullmatch(VIT, name)):
        _check_patches(name, resolution, int(patch[1]))
        settings["image_size"] = resolution
    if name in AUXILIARY:
        # Its ImageNet weights were made for inputs that it scales itself.
        settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    model: nn.Module = models.get_model(name, num_classes=classes, **settings)
    return model


def vision_transformer(name: str, resolution: int, classes: int, patch: int, **settings: Any) -> nn.Module:
    """Return torchvision's vision transformer with settings of its own, and random weights."""
    from fedact.vision import models

    _check_patches(name, resolution, patch)
    model: nn.Module = models.VisionTransformer(resolution, patch, num_classes=classes, **settings)
    return model


def _check_patches(name: str, resolution: int, patch: int) -> None:
    if resolution % patch:
        raise ConfigError(f"--resolution {resolution}: {name} takes multiples of {patch}, the pixels of its patches")


def is_square(tokens: int) -> bool:
    """Tell whether so many tokens are the patches of a square image."""
    return isqrt(tokens) ** 2 == tokens


def imagenet_weights(name: str) -> Any:
    """Return torchvision's best ImageNet weights of a model: an enum with ``get_state_dict`` and ``transforms``."""
    from fedact.vision import models

    return models.get_model_weights(name).DEFAULT


def to_model_layout(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's weights by the model's current parameter names, without auxiliary heads that it does not have."""
    own = model.state_dict()
    counters = {name: count for name, count in own.items() if name.endswith(f".{COUNTER}")}
    named: dict[str, Tensor] = {}
    for name, tensor in ((str(name), tensor) for name, tensor in tensors.items()):
        # An auxiliary head that the model was built without is None.
        if getattr(model, name.partition(".")[0], model) is not None:
            # A network of the user's own may have such names.
            for old, current in RENAMED.items() if name not in own else ():
                name = re.sub(old, current, name)
            named[name] = tensor
    named = _fitted_positions(model, named)
    # Files from before batch norm counted its batches have the rest of it.
    return {**{name: count for name, count in counters.items() if name.replace(COUNTER, "running_var") in named}, **named}


def _fitted_positions(model: nn.Module, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a vision transformer's weights with position embeddings for the size of its images, interpolated if need be."""
    from fedact.vision import models

    key = "encoder.pos_embedding"
    if not isinstance(model, models.VisionTransformer) or key not in named:
        return named
    own, given = model.encoder.pos_embedding, named[key]
    if own.shape == given.shape or own.shape[::2] != given.shape[::2] or not is_square(given.shape[1] - 1):
        return named
    from torchvision.models.vision_transformer import interpolate_embeddings

    return dict(interpolate_embeddings(model.image_size, model.patch_size, named))
