"""Pictures whose class is the folder that they lie in."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples
from fedact.data.pictures import SUFFIXES, Pictures

log = logging.getLogger(__name__)


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes, sorted; raises ConfigError where there are not two folders of them."""
    names = sorted(entry.name for entry in list_folder(folder) if is_folder(entry))
    if len(names) < 2:
        given = f"only {names[0]}" if names else "none"
        raise ConfigError(f"{folder} must hold a folder of pictures for each of at least two classes: there is {given}")
    return names


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not hidden; raises ConfigError where it cannot be read."""
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


def read_classes(folder: Path, names: Sequence[str], side: int) -> Examples:
    """Return the pictures of each class, labelled by its place in ``names``; raises ConfigError for a class without any."""
    files: list[str] = []
    labels: list[int] = []
    others = [entry.name for entry in list_folder(folder) if not is_folder(entry)]
    for label, name in enumerate(names):
        pictures, no_pictures = files_below(folder / name)
        if not pictures:
            raise ConfigError(f"class {name} is empty: {folder / name} holds no picture ({', '.join(SUFFIXES)})")
        files += sorted(f"{name}/{picture}" for picture in pictures)
        labels += [label] * len(pictures)
        others += [f"{name}/{file}" for file in no_pictures]
    say_left_out(folder, others)
    return Examples(Pictures(folder, tuple(files), side), np.array(labels, np.int64))


def files_below(folder: Path) -> tuple[list[str], list[str]]:
    """Return the paths of the pictures in a folder and in those inside it, and of the other files there, hidden ones aside.

    Raises ConfigError for a link that leads back.
    """
    files = list(_below(folder, frozenset()))
    pictures = [file for file in files if file.lower().endswith(SUFFIXES)]
    return pictures, [file for file in files if not file.lower().endswith(SUFFIXES)]


def _below(folder: Path, above: frozenset[Path]) -> Iterator[str]:
    """Yield the paths of the files in a folder and in those inside it; above: the real paths of the folders it lies in."""
    if (real := folder.resolve()) in above:
        raise ConfigError(f"{folder} leads back to {real}, in which it lies")
    for entry in list_folder(folder):
        if is_folder(entry):
            yield from (f"{entry.name}/{file}" for file in _below(folder / entry.name, above | {real}))
        else:
            yield entry.name


def say_left_out(folder: Path, files: Sequence[str]) -> None:
    """Log how many files were left out as no pictures, with one of them, where there are any."""
    if files:
        count = f"{len(files):,} files are" if len(files) > 1 else "1 file is"
        log.warning(f"{folder}: {count} left out as no pictures, such as {min(files)}")


def read_train_and_test(train: Path, test: Path, side: int) -> tuple[Examples, Examples, list[str]]:
    """Return the training examples, the test examples and the names of their classes.

    Raises ConfigError where the two folders have other classes.
    """
    names, others = class_names(train), class_names(test)
    for name in sorted({*names} ^ {*others}):
        has, lacks = (train, test) if name in names else (test, train)
        raise ConfigError(f"{has} has class {name}, which {lacks} lacks: they must hold the same classes")
    return read_classes(train, names, side), read_classes(test, names, side), names
