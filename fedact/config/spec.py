"""``NAME:key=value,...``: how a method, a partition or a strategy is written and read back."""

import dataclasses
import types
from collections.abc import Mapping
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fedact.config.errors import ConfigError, nearest, unknown

Entry = TypeVar("Entry")


def split(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the settings of ``NAME:key=value,...`` as they were written."""
    name, _, rest = text.strip().partition(":")
    return name, written_settings(rest, text)


def written_settings(items: str, text: str) -> dict[str, str]:
    """Return the settings of ``key=value,...`` as they were written; text is what errors quote."""
    settings: dict[str, str] = {}
    for item in filter(None, items.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key or not value:
            raise ConfigError(f"settings are written key=value, not {item!r} in {text!r}")
        if key in settings:
            raise ConfigError(f"setting {key!r} is given twice in {text!r}")
        settings[key] = value
    return settings


def build(kind: str, table: Mapping[str, type[Entry]], text: str) -> Entry:
    """Return the table's entry made with the settings in ``text``.

    Raises ConfigError for an unknown name or setting, or a value that the entry refuses.
    """
    name, written = split(text)
    if name not in table:
        raise unknown(kind, name, table)
    return fill(table[name], f"{kind} {name}", written, text)


def fill(entry: type[Entry], what: str, written: Mapping[str, str], text: str) -> Entry:
    """Return an entry made with settings as they were written; raises ConfigError as ``build`` does."""
    types_of = get_type_hints(entry)
    fields = {field.name: types_of[field.name] for field in settings_of(entry)}
    for key in written:
        if key not in fields:
            raise (
                unknown(f"setting of {what}", key, fields)
                if fields
                else ConfigError(f"{what} has no settings, but {key!r} was given")
            )
    return entry(**{key: _read(fields[key], value, key, text) for key, value in written.items()})


def spell(name: str, entry: Any) -> str:
    """Return the full, canonical name: every setting that differs from its default, in their order."""
    settings = spelled_settings(entry)
    return f"{name}:{settings}" if settings else name


def spelled_settings(entry: Any) -> str:
    """Return ``key=value,...`` of every setting that differs from its default, in their order."""
    return ",".join(
        f"{field.name}={spelled(getattr(entry, field.name))}"
        for field in settings_of(entry)
        if getattr(entry, field.name) != field.default
    )


def settings_of(entry: Any) -> "list[dataclasses.Field[Any]]":
    """Return the settings in the order of the fields; keyword-only ones, which others of its kind have too, come last."""
    return sorted(dataclasses.fields(entry), key=lambda field: field.kw_only is True)


def _read(kind: Any, value: str, key: str, text: str) -> Any:
    choices = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for choice in choices:
        try:
            if get_origin(choice) is Literal:
                return next(allowed for allowed in get_args(choice) if str(allowed) == value)
            if choice is bool:
                return {"true": True, "false": False}[value.lower()]
            if get_origin(choice) is tuple:
                return tuple(int(part) for part in value.split("x"))
            if choice in (int, float, str):
                return choice(value)
        except (ValueError, KeyError, StopIteration):
            continue
    named = [spelled(allowed) for choice in choices if get_origin(choice) is Literal for allowed in get_args(choice)]
    allowed = f": allowed are {', '.join(named)}{nearest(value, named)}" if named else ""
    raise ConfigError(f"setting {key} of {text!r} cannot be {value!r}{allowed}")


def spelled(value: Any) -> str:
    """Return a setting's value as it is written; ``-`` where there is none."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else _shortest(value) if isinstance(value, float) else str(value)


def _shortest(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def within(what: str, name: str, value: float, least: float, most: float) -> None:
    """Raise ConfigError for a setting that does not lie between two bounds, both of them allowed."""
    if not least <= value <= most:
        raise ConfigError(f"{what}: {name} is at least {least:g} and at most {most:,g}, not {value:g}")


def above(what: str, name: str, value: float, most: float = float("inf")) -> None:
    """Raise ConfigError for a setting that is not positive, not finite or over a bound."""
    if not (0 < value <= most and isfinite(value)):
        bound = f" and at most {most:,g}" if isfinite(most) else ""
        raise ConfigError(f"{what}: {name} is above 0{bound}, not {value:g}")


def below_one(what: str, name: str, value: float) -> None:
    """Raise ConfigError for a setting that is no share below 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{what}: {name} is at least 0 and below 1, not {value:g}")
