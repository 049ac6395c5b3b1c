"""Undoes what ``install`` did: plain classes, and the same parameters trainable as before."""

from typing import Any

from torch import nn

from fedact.nn.blocks import Block
from fedact.nn.graph import named_modules
from fedact.nn.layers import Swapped
from fedact.nn.layers.parts import merge, part_of
from fedact.nn.prefix import chunks
from fedact.nn.streams import install as streams

TRAINABLE = "_fedact_trainable"
"""The attribute in which ``install`` notes which of a module's own parameters were trainable."""
ATTRIBUTES = ("codec", "output_is_saved", "mask_is_deferred", "source", "segment", "chains", "watchers", *streams.ATTRIBUTES)
"""The attributes that ``install`` sets on modules, and ``restore`` deletes."""


def restore(model: nn.Module) -> nn.Module:
    """Undo ``compress`` or ``apply``, in place: plain layers, the same parameters trainable as before; returns the model.

    What was put into the model since stays as it is. Low-rank updates are added to the weights that they are beside.

    >>> import fedact, torch
    >>> model = fedact.compress(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), "exact", layers=1)
    >>> type(model[0]).__name__, type(fedact.restore(model)[0]).__name__
    ('CompressedConv2d', 'Conv2d')
    """
    for _, module in named_modules(uninstall(model)):
        if part_of(module) is not None:
            merge(module)
    return model


def uninstall(model: nn.Module) -> nn.Module:
    """Undo what ``install`` did, in place; what an update added to layers stays. Returns the model."""
    for _, module in named_modules(model):
        chunks.restore(module)
        if isinstance(module, Swapped):
            # A user's class that blocks or streams run has attributes of its own.
            attributes = streams.ATTRIBUTES if isinstance(module, Block | streams.StreamHost) else ATTRIBUTES
            module.__class__ = _plain_class(type(module))
            for attribute in attributes:
                module.__dict__.pop(attribute, None)
        for name, trainable in vars(module).pop(TRAINABLE, {}).items():
            for parameter in _parameters(module, name):
                parameter.requires_grad_(trainable)
    return model


def _parameters(module: nn.Module, name: str) -> list[nn.Parameter]:
    """Return a module's own parameter of this name, or those that a parametrization, a norm or a mask put in its place."""
    own = {place: parameter for place, parameter in module._parameters.items() if parameter is not None}
    if name in own:
        return [own[name]]
    if name in getattr(module, "parametrizations", ()):
        return list(module.parametrizations[name].parameters(recurse=False))  # type: ignore[index, union-attr]
    # As in weight_g and weight_v, or in weight_orig.
    return [parameter for place, parameter in own.items() if place.startswith(f"{name}_")]


def _plain_class(kind: Any) -> Any:
    """Return a class without what ``install`` put in, also under one that was put on since, such as a parametrization's."""
    if not issubclass(kind, Swapped):
        return kind
    if kind.__module__.startswith("fedact."):
        return kind.plain
    bases = tuple(map(_plain_class, kind.__bases__))
    name = kind.__name__.replace(kind.__bases__[0].__name__, bases[0].__name__)
    return type(name, bases, {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")})
