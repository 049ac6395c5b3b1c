"""What the layers' autograd functions have in common: when they run, and which second derivatives they have."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fedact.compression import METHODS, method_name
from fedact.config.errors import ConfigError
from fedact.torch_private import in_transform, is_jit_tracing


def is_recorded(*tensors: Tensor | None) -> bool:
    """Tell whether autograd records a layer of these tensors, so that it saves what the gradient needs."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def is_traced() -> bool:
    """Tell whether a model is being traced or exported: then its plain layers run."""
    return torch.compiler.is_exporting() or is_jit_tracing()


def runs_plain() -> bool:
    """Tell whether plain layers run in place of autograd functions, with the same values and the exact gradients.

    That is so in traces and exports, in the transforms of ``torch.func`` and in forward mode.
    """
    # torch.compile cannot follow the question, and has no transforms where it calls a layer's function.
    return is_traced() or (not torch.compiler.is_dynamo_compiling() and in_transform())


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off for x's device; where it is, one that costs nothing."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Return ``function.apply(*args)``, outside of the graphs that ``torch.compile`` makes of the code around it."""
    return eagerly(function.apply, *args)


def as_output(y: Tensor) -> Tensor:
    """Return what an autograd function's forward computed, not as a view: autograd refuses to change a view in place."""
    return y.detach() if y._is_view() else y


def eagerly(call: Any, *args: Any) -> Any:
    """Return ``call(*args)``; ``torch.compile`` breaks its graph there, so that what is saved stays as it is."""
    return torch.compiler.disable(call)(*args) if torch.compiler.is_dynamo_compiling() else call(*args)  # type: ignore[no-untyped-call]


def check_first_derivative(method: Any, keeps_graph: bool) -> None:
    """Raise ConfigError in a backward pass with ``create_graph=True``, unless second derivatives are right.

    keeps_graph: whether what is saved still leads to the tensors that the layer had.
    """
    if torch.is_grad_enabled() and not keeps_graph:
        raise ConfigError(
            f"{_name(method)}: no second derivatives (create_graph=True) of a layer whose input is not saved as it was: "
            "take vanilla, or fedact.restore(model) first"
        )


def _name(method: Any) -> str:
    """Return what a method is called in errors; a text is a name itself."""
    method = getattr(method, "method", method)
    return method_name(method) if type(method) in METHODS.values() else str(method)


def check_no_transform(method: Any) -> None:
    """Raise ConfigError in a transform of ``torch.func`` or in forward mode, which cannot compress."""
    if not is_traced():
        raise ConfigError(
            f"{_name(method)}: torch.func's transforms and forward-mode derivatives do not compress: "
            "take exact or vanilla, or fedact.restore(model) first"
        )
