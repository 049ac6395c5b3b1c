"""Networks of the user's own: ``--model mine.py:build``, a function that makes one for a number of classes."""

import copy
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedact.config.code import split_code
from fedact.config.code_loading import load_code
from fedact.config.errors import ConfigError
from fedact.config.own_code import code_shown
from fedact.config.schema import Config

OPTIONS = ("resolution",)
"""Fields of Config that a function is given where it has a parameter of that name."""


def check_own(config: Config) -> None:
    """Raise ConfigError for settings that a network of the user's own has not."""
    if settings := split_code(config.model)[1]:
        raise ConfigError(
            f"--model {config.model_name}: settings, as {settings!r}, are for methods; a network's stand in its code"
        )
    if config.task != "classification":
        raise ConfigError(f"--model {config.model_name} is for --task classification, not for --task {config.task}")
    if config.width is not None:
        raise ConfigError(f"--width is not for --model {config.model_name}: its width is its own")


def own_network(config: Config, classes: int) -> nn.Module:
    """Return the network that a config's own code makes for this many classes; raises ConfigError where it makes none.

    The code is run, if it is what the config's digests say. What it returns is copied: it may return the same each time.
    """
    text = code_shown(config.model)
    made = load_code(config.model, config.code)
    if not isinstance(made, nn.Module):
        made = _called(made, text, classes, {name: getattr(config, name) for name in OPTIONS})
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{text} returns {_kind(made)}: it is a function from a number of classes to a torch.nn.Module")
    for name, each in made.named_modules():
        if isinstance(each, torch.jit.ScriptModule) or type(each).__name__ == "OptimizedModule":
            where = f" ({name})" if name else ""
            raise ConfigError(f"{text} returns what torch.jit or torch.compile made of a network{where}: give the network")
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ConfigError(f"{text} returns a network with lazy layers ({name}): give their sizes")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"{text} returns a network in {tensor.dtype} ({name}): it must be in torch.float32")
    try:
        return copy.deepcopy(made).cpu()
    except Exception as error:
        raise ConfigError(f"{text} returns a network that cannot be copied: {_reason(error)}") from None


def _called(function: Any, text: str, classes: int, options: dict[str, Any]) -> Any:
    if not callable(function):
        raise ConfigError(
            f"{text} is {_kind(function)}: it must be a function from a number of classes to a torch.nn.Module"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a class in C
        signature = inspect.Signature([inspect.Parameter("classes", inspect.Parameter.POSITIONAL_ONLY)])
    given = {name: value for name, value in options.items() if name in signature.parameters}
    try:
        signature.bind(classes, **given)
    except TypeError as error:
        raise ConfigError(
            f"{text} takes {signature}: it is called with the number of classes, and with resolution where it has a "
            f"parameter of that name ({error})"
        ) from None
    try:
        return function(classes, **given)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{text} fails for {classes} classes: {_reason(error)}") from None


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
