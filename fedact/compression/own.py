"""Methods of the user's own: a class in a file or a package, by its name, or one that an installed package brings."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, make_dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from fedact.compression.method import Method
from fedact.compression.traits import Traits
from fedact.config.code import PRIVATE, absolute_code, code_label, is_code
from fedact.config.code_loading import load_code, loaded_code
from fedact.config.errors import ConfigError
from fedact.config.spec import fill, refusal

GROUP = "fedact.methods"
"""The group of entry points by which an installed package brings methods."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def own_class(name: str, runs_code: bool) -> type[Method]:
    """Return the class that ``FILE.py:NAME`` or ``package.module:NAME`` names.

    runs_code: whether its code may run; where not, only what this process has run already is found: a plan, a run on disk or
    a message names code, but never runs it. Raises ConfigError where it is no method.
    """
    full = absolute_code(name)
    found = load_code(full if name.startswith("~") else name) if runs_code else loaded_code(full)
    if found is None:
        raise ConfigError(
            f"{code_label(name)} is code that was not run here, and what is read runs none: if you trust it, call "
            f"fedact.compression.make_method({name!r}) first"
        )
    entry = _checked(found, code_label(name))
    if runs_code and (other := own_name(entry)) != full and is_code(other):
        raise ConfigError(f"{code_label(name)} is another name of {other}: write that")
    return entry


def _checked(found: Any, what: str) -> type[Method]:
    """Return a class that is a method; raises ConfigError for anything else."""
    kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ConfigError(f"{what} is {kind}: a method is a class that inherits fedact.compression.Method")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(f"{what} lacks {', '.join(missing)}, which every method has")
    if "__dataclass_params__" not in vars(found):
        raise ConfigError(
            f"{what} is no dataclass: put @dataclass(frozen=True) before the class, its fields are its settings"
        )
    if not isinstance(getattr(found, "traits", None), Traits):
        raise ConfigError(f"{what} lacks its traits: traits: ClassVar[Traits] = Traits(source=...)")
    return found


def build_own(entry: type[Method], what: str, written: Mapping[str, str], text: str) -> Method:
    """Return a method of one's own with settings as they were written; raises ConfigError for whatever it refuses.

    what: what errors call it. Limits in the annotations of a plain dataclass hold too.
    """
    try:
        hints = get_type_hints(entry, include_extras=True)
        needed = [field.name for field in fields(entry) if field.default is MISSING and field.default_factory is MISSING]
        if lacking := [name for name in needed if name not in written]:
            raise ConfigError(f"{what} needs a value for {lacking[0]}, which has no default: {what}:{lacking[0]}=...")
        made = fill(entry, f"method {what}", written, text)
        _check_values(made, hints, what)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be made: {' '.join(f'{type(error).__name__}: {error}'.split())}") from None
    return made


def _check_values(method: Method, hints: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError for a value that a field's annotation does not allow."""
    if "__pydantic_validator__" in vars(type(method)):
        return
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    checked: Any = pydantic_dataclass(config=_STRICT)(make_dataclass("Settings", [(name, hints[name]) for name in values]))
    try:
        checked(**values)
    except ValidationError as error:
        raise refusal(what, type(method), error) from None


def own_name(entry: type[Method]) -> str:
    """Return the name by which every process finds a class: an installed package's, ``/PATH.py:NAME`` or ``module:NAME``.

    Raises ConfigError for a class that none finds, as of a notebook.
    """
    for point in _points():
        if point.name.isidentifier() and loaded_code(point.value) is entry:
            return point.name
    for name, module in list(sys.modules.items()):
        if name.startswith(PRIVATE):
            for word, value in vars(module).items():
                if value is entry:
                    return f"{getattr(module, '__file__', None) or name}:{word}"
    name = f"{entry.__module__}:{entry.__qualname__}"
    if entry.__module__ == "__main__" or "<" in entry.__qualname__ or loaded_code(name) is not entry:
        raise ConfigError(
            f"{entry.__qualname__} is in no file that other processes could load: write it into one, and name the method "
            f"FILE.py:{entry.__name__}"
        )
    return name


def installed_class(name: str) -> type[Method] | None:
    """Return the class that an installed package brings as a method of this name; None where none does.

    Raises ConfigError where it fails or is no method, and where several packages bring one.
    """
    found = {point.value: point for point in _points() if point.name == name}
    if not found:
        return None
    packages = " and ".join(sorted(_package(point) for point in found.values()))
    if len(found) > 1:
        raise ConfigError(f"method {name!r} comes from {packages}: uninstall one of them, or name it package.module:NAME")
    (point,) = found.values()
    try:
        loaded = point.load()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"method {name!r} of {packages} fails: {reason}") from None
    return _checked(loaded, f"method {name!r} of {packages}")


def installed_names() -> dict[str, str]:
    """Return the names of the methods that installed packages bring, in order, each with its package."""
    return {point.name: _package(point) for point in sorted(_points(), key=lambda point: point.name)}


def _points() -> tuple[EntryPoint, ...]:
    return _points_on(tuple(sys.path))


@lru_cache(maxsize=1)
def _points_on(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of what is installed on a path: to look through it takes tens of milliseconds."""
    return tuple(entry_points(group=GROUP))


def _package(point: EntryPoint) -> str:
    return f"package {point.dist.name}" if point.dist else "a package"
