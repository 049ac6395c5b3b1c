"""torchvision's classifiers, by their names there."""

from typing import Any

from torch import nn

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Networks with heads that only the training from scratch needs, and the names of their tensors."""


def names() -> list[str]:
    """Return the names of every classifier that torchvision has."""
    import torchvision.models

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def build(name: str, classes: int, **settings: Any) -> nn.Module:
    """Return one of torchvision's classifiers with random weights, without auxiliary heads."""
    from torchvision.models import get_model

    if name in AUXILIARY:
        # Its ImageNet weights were made for inputs that it scales itself.
        settings |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    model: nn.Module = get_model(name, num_classes=classes, **settings)
    return model


def imagenet_weights(name: str) -> Any:
    """Return torchvision's best ImageNet weights of a model: an enum with ``get_state_dict`` and ``transforms``."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def is_auxiliary(model: str, tensor: str) -> bool:
    """Tell whether a tensor of a model's ImageNet weights belongs to a head that is not built here."""
    return tensor.startswith(tuple(AUXILIARY.get(model, ())))
