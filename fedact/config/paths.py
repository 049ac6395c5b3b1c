"""Paths as users write them, and where fedact keeps what is worth keeping between runs."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from fedact.config.errors import ConfigError


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` or ``~user`` at its beginning replaced by that home folder.

    A shell does so only where the word begins with it: not in ``--out=~/x``, in quotes, or in a file. Raises ConfigError
    for a home folder that nobody knows.

    >>> str(expanded("runs/~"))
    'runs/~'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: this home folder is not known here, write the path in full") from None


UserPath = Annotated[Path, AfterValidator(expanded)]
"""A setting that is a path."""


def cache_folder() -> Path:
    """Return where what is worth keeping between runs lies: $FEDACT_CACHE, else ~/.cache/fedact.

    Raises ConfigError where there is neither that nor a home folder.
    """
    if given := os.environ.get("FEDACT_CACHE"):
        return expanded(given)
    try:
        return Path.home() / ".cache" / "fedact"
    except RuntimeError:
        raise ConfigError("there is no home folder for data and caches: let $FEDACT_CACHE name a folder") from None
