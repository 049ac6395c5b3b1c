"""By what a network that is in no file is known: a run that goes on with another one is told so."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from hashlib import sha256
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from fedact.storage.checkpoints import digest


def module_digest(module: nn.Module) -> str:
    """Return a digest of a module's layers, of what its own classes compute, and of its tensors."""
    kinds = {type(each) for each in module.modules()}
    own = sorted(_class_text(kind) for kind in kinds if not kind.__module__.startswith("torch."))
    return sha256("\n".join([repr(module), *own, digest(module.state_dict())]).encode()).hexdigest()


def function_digest(function: Callable[..., Any]) -> str:
    """Return a digest of what a function computes, and of what it makes for two classes, where it makes that."""
    parts = [_code_text(function.__code__) if isinstance(function, FunctionType) else _class_text(type(function))]
    with suppress(Exception, SystemExit), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        made = function(2)
        parts.append(module_digest(made) if isinstance(made, nn.Module) else "")
    return sha256("\n".join(parts).encode()).hexdigest()


def class_digest(kind: type) -> str:
    """Return a digest of a method's class: of what it computes, and of its settings with their defaults."""
    settings = [(field.name, str(field.type), repr(field.default)) for field in fields(kind)]
    return sha256(f"{_class_text(kind)} {settings} {vars(kind).get('traits')}".encode()).hexdigest()


def _class_text(kind: type) -> str:
    codes = {name: _code_text(each.__code__) for name, each in vars(kind).items() if inspect.isfunction(each)}
    bases = [_class_text(base) for base in kind.__bases__ if not base.__module__.startswith(("torch.", "builtins"))]
    return f"{kind.__qualname__} {codes} {bases}"


def _code_text(code: CodeType) -> str:
    """Return what a function does, wherever it stands: its instructions, names and constants, and those of inner ones."""
    constants = [_code_text(each) if isinstance(each, CodeType) else _constant_text(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _constant_text(value: object) -> str:
    # A set has no order of its own.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
