"""``NAME:key=value,...``: how a method, a partition or a strategy is written and read back."""

import dataclasses
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from fedact.config.code import is_code, split_code
from fedact.config.errors import ConfigError, nearest, shortened, unknown

Entry = TypeVar("Entry")
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def split(text: str, table: Collection[str] = ()) -> tuple[str, dict[str, str]]:
    """Return the name and the settings of ``NAME:key=value,...`` as they were written; a name may be that of code.

    table: names that are no code, whatever modules there are.

    >>> split("hosvd:variance=0.8"), split("mine.py:Half:bits=8")
    (('hosvd', {'variance': '0.8'}), ('mine.py:Half', {'bits': '8'}))
    """
    text = text.strip()
    name, _, rest = text.partition(":")
    if name not in table and is_code(text):
        name, rest = split_code(text)
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


def build(kind: str, table: Mapping[str, type[Entry]], text: str, others: Iterable[str] = ()) -> Entry:
    """Return the table's entry made with the settings in ``text``.

    others: names that are allowed where the text is from, but are no entry's. Raises ConfigError for an unknown name or
    setting, or a value that the entry refuses.
    """
    name, written = split(text, table)
    if name not in table:
        raise unknown(kind, name, (*table, *others))
    return fill(table[name], f"{kind} {name}", written, text)


def fill(entry: type[Entry], what: str, written: Mapping[str, str], text: str) -> Entry:
    """Return an entry made with settings as they were written; raises ConfigError as ``build`` does."""
    types_of = get_type_hints(entry)
    fields = {field.name: types_of[field.name] for field in settings_of(entry)}
    for key in written:
        if key not in fields:
            raise _unknown_setting(what, key, fields)
    return entry(**{key: _read(fields[key], value, key, text) for key, value in written.items()})


def _unknown_setting(what: str, key: object, fields: Collection[str]) -> ConfigError:
    if fields and isinstance(key, str):
        return unknown(f"setting of {what}", key, fields)
    return ConfigError(f"{what} has {len(fields) or 'no'} settings, but {key!r} was given")


def spell(name: str, entry: Any) -> str:
    """Return the full, canonical name: every setting that differs from its default, in their order."""
    settings = spelled_settings(entry)
    return f"{name}:{settings}" if settings else name


def in_full(text: str, make: Callable[[str], Any]) -> str:
    """Return the full, canonical name of what a text means; make: reads it (see ``build``), and raises ConfigError."""
    return spell(split(text)[0], make(text))


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
    if isinstance(value, float):
        # The shortest text that reads back as the same number.
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(name: str) -> Callable[[type[Entry]], type[Entry]]:
    """Return the decorator of a frozen dataclass whose values pydantic checks against their annotations.

    name: what errors call it. A value that is not allowed raises a ConfigError of one line, such as ``fedavgm:
    server_momentum is at least 0 and below 1, not 2``; one that ``__post_init__`` raises stays as it is. Whole numbers
    become floats where these are wanted; otherwise nothing is converted.
    """

    def decorate(entry: type[Entry]) -> type[Entry]:
        checked: Any = pydantic_dataclass(frozen=True, config=_STRICT)(entry)
        initialize = checked.__init__

        @wraps(initialize)
        def __init__(self: Entry, *values: Any, **by_name: Any) -> None:
            try:
                initialize(self, *values, **by_name)
            except ValidationError as error:
                raise refusal(name, checked, error) from None

        checked.__init__ = __init__
        return cast(type[Entry], checked)

    return decorate


def refusal(name: str, entry: type[Any], error: ValidationError) -> ConfigError:
    """Return the ConfigError for the first of the values that pydantic refused: what is allowed, and what was given."""
    detail = error.errors()[0]
    if cause := detail.get("ctx", {}).get("error"):
        return ConfigError(str(cause))
    key, fields = detail["loc"][0], [field.name for field in dataclasses.fields(entry)]
    if detail["type"].startswith("unexpected_"):
        return _unknown_setting(name, key if isinstance(key, str) else detail["input"], fields)
    setting, given = key if isinstance(key, str) else fields[key], detail["input"]
    bounds = " and ".join(_bounds(get_type_hints(entry, include_extras=True)[setting]))
    allowed = _TYPES.get(detail["type"]) or bounds or detail["msg"].removeprefix("Input should be ")
    shown = spelled(given) if isinstance(given, int | float | tuple) else shortened(given)
    return ConfigError(f"{name}: {setting} is {allowed}, not {shown}")


_TYPES = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def _bounds(annotation: Any) -> Iterator[str]:
    """Yield what an annotation allows, in words: its choices and its bounds, within unions too."""
    if get_origin(annotation) is Literal:
        yield f"one of {', '.join(map(str, get_args(annotation)))}"
    elif isinstance(annotation, FieldInfo):
        for bound in annotation.metadata:
            yield from (f"{word} {getattr(bound, key):,}" for key, word in _BOUNDS.items() if hasattr(bound, key))
    else:
        for part in get_args(annotation):
            yield from _bounds(part)
