"""Data that is in memory as one file of the cache, named by what it holds: workers, Ray and a later run read it there."""

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from fedact.config.errors import ConfigError
from fedact.config.paths import cache_folder
from fedact.data.own import Arrays, as_arrays, source_of
from fedact.storage.disk import UNFINISHED, make_folder
from fedact.storage.system import create, replace
from fedact.training.prefix_cache import fingerprint


def stored_arrays(train: Any, test: Any) -> tuple[Path, Arrays]:
    """Return the npz file of training and test data, written where it is not there yet, and the training data.

    train, test: what ``as_arrays`` takes. Raises ConfigError for data that no run could use, before anything is written.
    """
    for name, data in (("train", train), ("test", test)):
        if data is None:
            other = "test" if name == "train" else "train"
            raise ConfigError(f"{other} was given without {name}: a run trains on one and measures on the other")
    parts = {"train": as_arrays(train, "train"), "test": as_arrays(test, "test")}
    source_of(parts["train"], parts["test"], "train and test")
    named = {
        f"{kind}_{part}": array
        for part, arrays in parts.items()
        for kind, array in zip(("x", "y", "client"), arrays, strict=True)
        if array is not None
    }
    digest = fingerprint(*(each for name, array in named.items() for each in (name, array)))
    file = cache_folder() / "arrays" / f"arrays-{digest[:16]}.npz"
    if not file.is_file():
        _write(file, named)
    return file, parts["train"]


def _write(file: Path, named: dict[str, np.ndarray]) -> None:
    """Write an npz file whole or not at all, that its owner alone may read."""
    make_folder(file.parent, private=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with create(temporary) as opened:
            np.savez(opened, allow_pickle=False, **named)
        replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
