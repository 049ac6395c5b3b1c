"""Settings as they are given, to a Config: from a TOML file, with one error that names all that is wrong."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedact.config.errors import ConfigError, as_flag, nearest, shortened
from fedact.config.schema import SETTINGS, Config
from fedact.config.toml import read_table


def make_config(settings: dict[str, Any]) -> Config:
    """Return the config with these settings; raises one ConfigError that names all that is wrong."""
    try:
        return Config(**settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(detail) for detail in error.errors())) from None


def read_toml(file: Path) -> dict[str, Any]:
    """Return the settings in a TOML file; keys may be written with - or _."""
    settings = read_table("config", file)
    spelled = {key.replace("-", "_"): value for key, value in settings.items()}
    if len(spelled) < len(settings):
        twice = ", ".join(key for key in settings if "-" in key and key.replace("-", "_") in settings)
        raise ConfigError(f"--config {file} gives {twice} twice, once with - and once with _")
    return spelled


def _explain(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"] if part in Config.model_fields or isinstance(part, int))
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][0])
        return f"unknown key {key!r}{nearest(key, SETTINGS)}"
    message = detail["msg"].removeprefix("Value error, ")
    if not name or message.startswith("--"):
        return str(message)
    return f"{as_flag(name)} is {shortened(detail['input'])}: {message[0].lower()}{message[1:]}"
