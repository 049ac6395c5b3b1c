"""Data sets that torchvision downloads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError


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
