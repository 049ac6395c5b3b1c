"""torchvision's classifiers: building them by name, and their published weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with auxiliary heads, which are left out: only training from scratch needs them."""

RENAMED = {
    r"(\.denselayer\d+\.(?:norm|conv))\.(\d)\.": r"\1\2.",
    r"\.mlp\.linear_1\.": ".mlp.0.",
    r"\.mlp\.linear_2\.": ".mlp.3.",
}
"""Parameter names in torchvision's published files (DenseNet, ViT), as patterns, and their names in its current models."""

COUNTER = "num_batches_tracked"


def classifier_names() -> list[str]:
    """Return the names of every classifier that torchvision has."""
    from fedact.vision import models

    names: list[str] = models.list_models(module=models)
    return names


def build(name: str, classes: int, **settings: Any) -> nn.Module:
    """Return one of torchvision's classifiers with random weights, without auxiliary heads."""
    from fedact.vision import models

    if name in AUXILIARY:
        # Its ImageNet weights were made for inputs that it scales itself.
        settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    model: nn.Module = models.get_model(name, num_classes=classes, **settings)
    return model


def imagenet_weights(name: str) -> Any:
    """Return torchvision's best ImageNet weights of a model: an enum with ``get_state_dict`` and ``transforms``."""
    from fedact.vision import models

    return models.get_model_weights(name).DEFAULT


def to_model_layout(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's weights by the model's current parameter names, without auxiliary heads that it does not have."""
    counters = {name: count for name, count in model.state_dict().items() if name.endswith(f".{COUNTER}")}
    named: dict[str, Tensor] = {}
    for name, tensor in ((str(name), tensor) for name, tensor in tensors.items()):
        # An auxiliary head that the model was built without is None.
        if getattr(model, name.partition(".")[0], model) is not None:
            for old, current in RENAMED.items():
                name = re.sub(old, current, name)
            named[name] = tensor
    # Files from before batch norm counted its batches have the rest of it.
    return {**{name: count for name, count in counters.items() if name.replace(COUNTER, "running_var") in named}, **named}
