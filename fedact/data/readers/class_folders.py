"""Pictures whose class is the folder that they lie in."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples
from fedact.data.pictures import SUFFIXES, Pictures


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes, sorted; raises ConfigError where there are not two folders of them."""
    names = sorted(entry.name for entry in scanned(folder) if is_folder(entry))
    if len(names) < 2:
        given = f"only {names[0]}" if names else "none"
        raise ConfigError(f"{folder} must hold a folder of pictures for each of at least two classes: there is {given}")
    return names


def scanned(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder and is not hidden; raises ConfigError where it cannot be looked into."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read as a folder: {error.strerror}") from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; raises ConfigError where it cannot be told, as for a link to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        raise ConfigError(f"{entry.path} cannot be looked at: {error.strerror}") from None


def labelled(folder: Path, names: Sequence[str], side: int) -> Examples:
    """Return the pictures of the classes in their order; raises ConfigError for a class without any."""
    files = [_pictures_in(folder, name) for name in names]
    labels = np.repeat(np.arange(len(names)), [len(each) for each in files])
    return Examples(Pictures(folder, tuple(file for each in files for file in each), side), labels)


def both(train: Path, test: Path, side: int) -> tuple[Examples, Examples, list[str]]:
    """Return what is to train on, what is to test on, and the classes; raises ConfigError where they are not the same."""
    names, others = class_names(train), class_names(test)
    for name in sorted({*names} ^ {*others}):
        has, lacks = (train, test) if name in names else (test, train)
        raise ConfigError(f"{has} has class {name}, which {lacks} lacks: they must hold the same classes")
    return labelled(train, names, side), labelled(test, names, side), names


def _pictures_in(folder: Path, name: str) -> list[str]:
    files = [f"{name}/{entry.name}" for entry in scanned(folder / name) if entry.name.lower().endswith(SUFFIXES)]
    if not files:
        raise ConfigError(f"class {name} is empty: {folder / name} holds no picture ({', '.join(SUFFIXES)})")
    return sorted(files)
