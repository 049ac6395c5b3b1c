"""TOML files of the user's, read with errors that name the flag and the file."""

import os
import tomllib
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError

MOST_BYTES = 10**6


def read_table(flag: str, file: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raises ConfigError where it cannot be read or is no TOML."""
    try:
        with open(os.path.expanduser(file), "rb") as opened:
            text = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--{flag} {file} cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise ConfigError(f"--{flag} {file} is longer than {MOST_BYTES:,} bytes")
    try:
        return tomllib.loads(text.decode())
    except RecursionError:
        raise ConfigError(f"--{flag} {file} is nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"--{flag} {file} is not TOML: {error}") from None
