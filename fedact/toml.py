"""TOML files of the user's, read with errors that name the flag and the file."""

import os
import tomllib
from pathlib import Path
from typing import Any

from fedact.errors import ConfigError


def read_table(flag: str, file: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raises ConfigError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(Path(os.path.expanduser(file)).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--{flag} {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{flag} {file} is not TOML: {error}") from None
