"""TOML files of the user's, read with errors that name the flag and the file."""

import codecs
import tomllib
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError
from fedact.config.paths import expanded

MOST_BYTES = 10**6
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_table(flag: str, file: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raises ConfigError where it cannot be read or is no TOML."""
    try:
        with open(expanded(file), "rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--{flag} {file} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"--{flag} {file} is longer than {MOST_BYTES:,} bytes")
    try:
        return tomllib.loads(decoded(content))
    except RecursionError:
        raise ConfigError(f"--{flag} {file} is nested too deeply") from None
    except ValueError as error:
        ends = " (its lines end in \\r alone: save it with \\n)" if b"\r" in content and b"\n" not in content else ""
        raise ConfigError(f"--{flag} {file} is not TOML{ends}: {error}") from None


def decoded(content: bytes) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where it begins with the mark of that, without its mark.

    Windows' editors begin files with such a mark. Raises ValueError for what is neither.
    """
    return content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig")
