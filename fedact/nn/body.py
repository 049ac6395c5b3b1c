"""A network's body and head: which layers there are to train, by name."""

from torch import nn

from fedact.config.errors import ConfigError
from fedact.nn.graph import named_modules
from fedact.nn.install import has_statistics
from fedact.nn.layers import CONVOLUTIONS, SMOOTH
from fedact.nn.layers.base import EXAMPLE_NORMS
from fedact.nn.layers.parts import keeps_input, part_of

POSITIONS = "cpb_mlp"
"""The part of torchvision's and timm's Swin version 2 that makes position biases: its input is no activation."""


def body_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that ``layers=N`` counts from the end, in definition order, without the head.

    They are the convolutions of series and of pictures; in a network with more linear layers than these, as a transformer
    is, its linear layers too. Of ``nn.MultiheadAttention`` the input projection is a layer, by the name of the module, and
    the output projection another. What a network makes position biases with (Swin version 2) is none.
    """
    heads, kinds = set(head(model)), (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)
    layers = [
        (name, module)
        for name, module in named_modules(model)
        if isinstance(module, kinds) and name not in heads and POSITIONS not in name.split(".")
    ]
    convolved = [name for name, module in layers if isinstance(module, CONVOLUTIONS)]
    return [name for name, _ in layers] if 2 * len(convolved) < len(layers) else convolved


def convolutions(model: nn.Module) -> list[str]:
    """Return the names of the model's convolutions in definition order, without those that are its head."""
    heads = _named_heads(model)
    return [name for name, module in named_modules(model) if isinstance(module, CONVOLUTIONS) and name not in heads]


def count_text(model: nn.Module) -> str:
    """Return how many body layers a model has, in words: ``52 convolutions``, or ``25 layers`` where some are linear."""
    return f"{len(body_layers(model))} {counted(model)}"


def counted(model: nn.Module) -> str:
    """Return what ``body_layers`` are, in a word: ``convolutions``, or ``layers`` where some are linear."""
    return "convolutions" if body_layers(model) == convolutions(model) else "layers"


def head(model: nn.Module) -> list[str]:
    """Return the names of the model's head layers: usually one, none for a model without a head.

    They are what its attribute ``head_name`` says (a name, or several); without it, the last linear layer unless a
    convolution comes after. Raises ConfigError for a ``head_name`` that is no convolution or linear layer.
    """
    if named := _named_heads(model):
        return named
    kinds = [(name, module) for name, module in named_modules(model) if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    return [kinds[-1][0]] if kinds and isinstance(kinds[-1][1], nn.Linear) else []


def _named_heads(model: nn.Module) -> list[str]:
    """Return the layers that ``model.head_name`` names, none where it has no such attribute."""
    attribute = getattr(model, "head_name", ())
    named, layers = [attribute] if isinstance(attribute, str) else list(attribute), dict(named_modules(model))
    for name in named:
        if not isinstance(layers.get(name), (*CONVOLUTIONS, nn.Linear)):
            raise ConfigError(f"the model's head_name is {name!r}, which is none of its convolutions and linear layers")
    return named


def trained_layers(model: nn.Module, layers: int, train_norm: bool = False) -> list[str]:
    """Return the names of the trained layers: the last ``layers`` of its ``body_layers``, then the head.

    Of an adapted model without those whose update needs no input (see ``nn.adaptation``).
    With ``train_norm`` (and layers above 0) also every norm with scale or shift after the first of them.
    Raises ConfigError where the model has fewer layers, or where nothing would be trained.
    """
    names = body_layers(model)
    if not 0 <= layers <= len(names):
        raise ConfigError(f"the model has {count_text(model)}: layers is at least 0 and at most that, not {layers}")
    trained = names[len(names) - layers :] + head(model)
    if not trained:
        raise ConfigError("the model has no head: layers must be at least 1, not 0")
    if not (kept := [name for name in trained if keeps_input(model.get_submodule(name))]):
        raise ConfigError("the model has no head, and an update that keeps no inputs needs one to train")
    trained = kept
    if not (train_norm and layers):
        return trained
    modules = named_modules(model)
    later = modules[[name for name, _ in modules].index(trained[0]) + 1 :]
    return trained + [name for name, module in later if is_trainable_norm(module)]


def is_trainable_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm with a scale or a shift that a method can train."""
    known = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or is_example_norm(module)
    return known and has_statistics(module) and any(each is not None for each in module._parameters.values())


def is_example_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm of each example's own statistics that a method keeps the input of."""
    return isinstance(module, EXAMPLE_NORMS) and isinstance(module, tuple(SMOOTH))


def light_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers of which an update trains parts whose gradient needs no input."""
    parts = {name: part_of(module) for name, module in named_modules(model)}
    return [name for name, part in parts.items() if part is not None and part.names and not part.keeps_input]


def smooth_activations(model: nn.Module) -> list[str]:
    """Return the names of the activations and norms whose gradient needs their input, such as GELU."""
    return [name for name, module in named_modules(model) if isinstance(module, tuple(SMOOTH))]
