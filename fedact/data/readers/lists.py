"""Pictures that text files list, with their labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedact.config.errors import ConfigError
from fedact.config.toml import decoded
from fedact.data.examples import Examples
from fedact.data.pictures import Pictures


def fetch(title: str, kind: Any, root: Path, needed: Sequence[Path], what: str) -> None:
    """Let torchvision download a data set, unless every path that is needed is there.

    kind: torchvision's class; what: is to be put where. Raises ConfigError that says so where the download fails.
    """
    if all(path.exists() for path in needed):
        return
    try:
        kind(root, download=True)
    except (OSError, RuntimeError) as error:
        missing = next((path for path in needed if not path.exists()), needed[0])
        raise ConfigError(
            f"{title} lacks {missing} and could not be downloaded ({' '.join(str(error).split())}): put {what}, "
            "or name another --data-dir"
        ) from None


def read_rows(file: Path, words: int) -> list[list[str]]:
    """Return the words of each line that is no comment, at least so many; raises ConfigError for a line of fewer."""
    try:
        text = decoded(file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) < words:
            raise ConfigError(f"{file} has the line {' '.join(row)!r}, where each is of {words} words")
    if not rows:
        raise ConfigError(f"{file} is empty")
    return rows


def parse_number(text: str, allowed: range, file: Path) -> int:
    """Return a number of a text file; raises ConfigError where it is none that is allowed."""
    if not (text.isascii() and text.isdigit() and int(text) in allowed):
        raise ConfigError(f"{file} holds {text!r}, where a number from {allowed.start} to {allowed.stop - 1} is due")
    return int(text)


def labelled_pictures(root: Path, files: Sequence[str], labels: Sequence[int], side: int, source: Path) -> Examples:
    """Return pictures with their labels; raises ConfigError for one that is not there, or where there is none.

    source: the file that lists them.
    """
    if not files:
        raise ConfigError(f"{source} names no picture")
    for file in files:
        if not (root / file).is_file():
            raise ConfigError(f"{source} names {root / file}, which is not there")
    return Examples(Pictures(root, tuple(files), side), np.array(labels, np.int64))
