"""By what a network that is in no file is known: a run that goes on with another one is told so."""

import dis
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from hashlib import sha256
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedact.storage.checkpoints import digest

OF_LIBRARIES = ("torch.", "builtins", "numpy", "fedact.")
"""Modules whose code is known by their names."""
OF_MODULES = frozenset(vars(nn.Module())) | {"training"}
"""What torch keeps in every module: its parameters, buffers, children and hooks, which are looked at by themselves."""


def module_digest(module: nn.Module) -> str:
    """Return a digest of a module's layers, of what its own classes compute, and of its tensors and other attributes."""
    seen: set[int] = set()
    kinds = {type(each) for each in module.modules()}
    own = sorted(_class_text(kind, seen) for kind in kinds if not kind.__module__.startswith("torch."))
    attributes = [
        f"{name}.{key}={_value_text(value, seen)}"
        for name, each in module.named_modules()
        for key, value in sorted(vars(each).items())
        if key not in OF_MODULES
    ]
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    return sha256("\n".join([repr(module), *own, *attributes, digest(_tensors(tensors))]).encode()).hexdigest()


def function_digest(function: Callable[..., Any]) -> str:
    """Return a digest of what a function computes, and of what it makes for two classes, where it makes that."""
    parts = [_value_text(function, set()) if isinstance(function, FunctionType) else _class_text(type(function), set())]
    with suppress(Exception, SystemExit), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        made = function(2)
        parts.append(module_digest(made) if isinstance(made, nn.Module) else "")
    return sha256("\n".join(parts).encode()).hexdigest()


def class_digest(kind: type) -> str:
    """Return a digest of a method's class: of what it computes, and of its settings with their defaults."""
    settings = [(field.name, str(field.type), repr(field.default)) for field in fields(kind)]
    return sha256(f"{_class_text(kind, set())} {settings} {vars(kind).get('traits')}".encode()).hexdigest()


def _class_text(kind: type, seen: set[int]) -> str:
    """Return what a class of one's own computes: its functions, constants and bases; seen: what was said already."""
    if id(kind) in seen or str(kind.__module__).startswith(OF_LIBRARIES):
        return kind.__qualname__
    seen.add(id(kind))
    own = {name: _value_text(each, seen) for name, each in vars(kind).items() if _is_own(name, each)}
    return f"{kind.__qualname__} {own} {[_class_text(base, seen) for base in kind.__bases__]}"


def _is_own(name: str, value: object) -> bool:
    """Tell whether a member of a class is what somebody wrote, and not what Python, a dataclass or abc keeps there."""
    if inspect.isfunction(value) or isinstance(value, staticmethod | classmethod | property):
        return True
    return not name.startswith("__") and name != "_abc_impl" and isinstance(value, int | float | str | tuple | list | dict)


def _value_text(value: Any, seen: set[int]) -> str:
    """Return what a value is, the same in every process: of a function what it does, and with which values."""
    if isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    if isinstance(value, property):
        return str([_value_text(each, seen) for each in (value.fget, value.fset) if each is not None])
    if isinstance(value, FunctionType):
        return _function_text(value, seen)
    if isinstance(value, type):
        return _class_text(value, seen)
    if isinstance(value, Tensor):
        return digest(_tensors({"": value}))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, Mapping):
        return str([(repr(key), _value_text(each, seen)) for key, each in value.items()])
    if isinstance(value, list | tuple):
        return str([_value_text(each, seen) for each in value])
    plain = isinstance(value, bool | int | float | complex | str | bytes | frozenset | torch.dtype | None)
    return _constant_text(value) if plain else type(value).__qualname__


def _function_text(function: FunctionType, seen: set[int]) -> str:
    """Return what a function does, with its defaults, and with what it uses from around it, of which no library tells."""
    if id(function) in seen or str(function.__module__).startswith(OF_LIBRARIES):
        return function.__qualname__
    seen.add(id(function))
    around = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not filled yet
            around[name] = cell.cell_contents
    used = {name: _value_text(each, seen) for name, each in sorted(around.items()) if name != "__class__"}
    defaults = _value_text((function.__defaults__, function.__kwdefaults__ or {}), seen)
    return f"{_code_text(function.__code__)} {defaults} {used}"


def _names(code: CodeType) -> set[str]:
    """Return the global names that a function, or one within it, reads."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"}
    return own.union(*(_names(each) for each in code.co_consts if isinstance(each, CodeType)))


def _tensors(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return those of some values that are tensors with bytes to look at."""
    return {
        name: each
        for name, each in tensors.items()
        if isinstance(each, Tensor)
        and each.device.type != "meta"
        and each.layout == torch.strided
        and not nn.parameter.is_lazy(each)
    }


def _code_text(code: CodeType) -> str:
    """Return what a function does, wherever it stands: its instructions, names and constants, and those of inner ones."""
    constants = [_code_text(each) if isinstance(each, CodeType) else _constant_text(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _constant_text(value: object) -> str:
    # A set has no order of its own.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
