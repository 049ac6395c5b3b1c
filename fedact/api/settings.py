"""Keywords of ``fedact.run`` as the settings of the command line, checked by the same Config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fedact.api.methods import method_text
from fedact.config.errors import ConfigError, nearest, shortened
from fedact.config.loading import make_config
from fedact.config.own_code import with_code
from fedact.config.schema import SETTINGS, Config

TEXTS = (str, Path)


def config_of(settings: Mapping[str, Any]) -> Config:
    """Return the config of keywords, with the digests of its code; raises ConfigError for all that is wrong with them.

    Paths, numbers, lists and dictionaries are written as the command line has them; None is what was not given, and as a
    budget none.

    >>> config = config_of({"clients": 4, "budget": {"64KB": 3, None: 1}, "faults": {"drop": 0.5}, "method": ["exact"]})
    >>> str(config.budget), config.faults, config.method
    ('64KB:3,none:1', 'drop=0.5', ('exact',))
    """
    check_keywords(settings)
    given = {name: _written(name, value) for name, value in settings.items() if value is not None or name == "budget"}
    return with_code(make_config(given))


def check_keywords(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a keyword that is no setting, with the nearest."""
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(
                f"fedact.run has no keyword {name!r}{nearest(name, ['model', 'train', 'test', 'quiet', *SETTINGS])}"
            )


def _written(name: str, value: Any) -> Any:
    """Return a keyword's value as a config file would have it."""
    if name == "method":
        return tuple(map(method_text, value if isinstance(value, list | tuple) else (value,)))
    if name == "budget":
        return _budget(value)
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_text(each)}" for key, each in value.items())
    if hasattr(value, "item") and not isinstance(value, TEXTS) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, bool) or not _is_text(name):
        return value
    if isinstance(value, int | float | Path) or type(value).__module__ == "torch":
        return _text(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {shortened(value)}: it is a text, as --{name.replace('_', '-')} has it")
    return value


def _is_text(name: str) -> bool:
    """Tell whether a field of Config is a text and nothing else."""
    annotation = Config.model_fields[name].annotation
    return annotation is str or set(get_args(annotation)) == {str, type(None)}


def _budget(value: Any) -> Any:
    """Return a budget as text: a size, sizes with shares of the clients, or one size a client."""
    if isinstance(value, Mapping):
        return ",".join(f"{_size(size)}:{_text(share)}" for size, share in value.items())
    if isinstance(value, list | tuple):
        return "/".join(map(_size, value))
    return _size(value)


def _size(value: Any) -> str:
    return "none" if value is None else _text(value)


def _text(value: Any) -> str:
    """Return a value as a command line has it: whole numbers without a point."""
    value = value.item() if hasattr(value, "item") and not isinstance(value, TEXTS) else value
    return f"{int(value)}" if isinstance(value, float) and value.is_integer() else str(value)
