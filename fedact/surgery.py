"""Puts a method or a plan into a model and takes it out again."""

import warnings
from collections.abc import Mapping

from torch import nn

from fedact.compression import Method, make_method
from fedact.errors import ConfigError
from fedact.layers import KEEPING, LEAN, PLAIN
from fedact.plans import Plan

_TRAINABLE = "_fedact_trainable"


def convolutions(model: nn.Module) -> list[str]:
    """Return the names of the model's 2-D convolutions in definition order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def head(model: nn.Module) -> list[str]:
    """Return the name of the last linear layer, in a list; an empty one where a convolution comes last."""
    kinds = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [kinds[-1][0]] if kinds and isinstance(kinds[-1][1], nn.Linear) else []


def trained_layers(model: nn.Module, layers: int) -> list[str]:
    """Return the names of the last ``layers`` convolutions and of the head.

    Raises ConfigError where the model has fewer convolutions, or where nothing would be trained.
    """
    names = convolutions(model)
    if not 0 <= layers <= len(names):
        raise ConfigError(f"the model has {len(names)} convolutions: layers is at least 0 and at most that, not {layers}")
    trained = names[len(names) - layers :] + head(model)
    if not trained:
        raise ConfigError("the model has no linear head: layers must be at least 1, not 0")
    return trained


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def compress(model: nn.Module, method: str | Method = "hosvd:variance=0.8", layers: int = 4) -> nn.Module:
    """Freeze all but the last ``layers`` convolutions and the head, and keep their inputs through a method, in place.

    Batch norm stays in eval mode and dropout off, as for every method; state_dict keys stay. Returns the model.
    Raises ConfigError for an unknown method or too many layers; warns of a trained layer that cannot be wrapped.
    """
    codec = make_method(method)
    return install(model, assign(model, trained_layers(model, layers), codec), codec.lean)


def assign(model: nn.Module, names: list[str], method: Method) -> dict[str, Method]:
    """Return the method of each named layer's input."""
    dimensions = {name: 4 if isinstance(model.get_submodule(name), nn.Conv2d) else 2 for name in names}
    return {name: method.for_dimensions(count) for name, count in dimensions.items()}


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Put a plan into a model, in place; returns the model. Raises ConfigError for a plan of another model."""
    names = set(dict(model.named_modules()))
    for kept in plan.kept:
        if kept.name not in names:
            raise ConfigError(f"the plan keeps the input of {kept.name!r}, which the model does not have")
    methods = {kept.name: make_method(kept.method) for kept in plan.kept}
    return install(model, methods, all(method.lean for method in methods.values()))


def install(model: nn.Module, methods: Mapping[str, Method], lean: bool) -> nn.Module:
    """Train the named layers, each with its method; freeze every other parameter."""
    restore(model)
    setattr(model, _TRAINABLE, frozenset(trained_parameters(model)))
    model.requires_grad_(False)
    for module in model.modules():
        _swap(module, LEAN if lean else PLAIN)
    for name, method in methods.items():
        module = model.get_submodule(name)
        module.requires_grad_(True)
        if not lean:
            continue
        if type(module) in KEEPING:
            _swap(module, KEEPING)
            module.method = method  # type: ignore[assignment]
        else:
            warnings.warn(f"{name} ({type(module).__name__}) is trained, but its input is kept by autograd", stacklevel=3)
    return model


def restore(model: nn.Module) -> nn.Module:
    """Take a method or a plan out of a model: the plain classes, and what was trainable before. Returns the model."""
    for module in model.modules():
        plain = getattr(type(module), "plain", None)
        if plain is not None:
            module.__class__ = plain
            module.__dict__.pop("method", None)
    trainable = model.__dict__.pop(_TRAINABLE, None)
    if trainable is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
    return model


def _swap(module: nn.Module, table: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    # Changing the class keeps the parameters, the hooks and every reference to the module, shared modules included.
    replacement = table.get(type(module))
    if replacement is not None and not _needs_batch_statistics(module):
        module.__class__ = replacement


def _needs_batch_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is None
