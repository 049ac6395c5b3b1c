"""Any data set in one ``.npz`` file: x_train, y_train, x_test, y_test."""

import zipfile
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.class_ids import classes_of_ids
from fedact.data.examples import Examples, Request, Source

MOST_CLASSES, FEW_CLASSES = 100_000, 1000
"""Up to the second there may be fewer training examples than classes."""
LONGEST = 50
"""Sides: a longer strip would be scaled up to far more pixels than are kept of it."""
ALWAYS_FINE, MOST_UNPACKED = 10**9, 100
"""A file may unpack to so many bytes, and to more where it is at most so many times its own size."""
KEYS = ("x_train", "y_train", "x_test", "y_test")


def load(request: Request) -> Source:
    """Return the file's examples; labels with gaps are the classes' names, and the classes are numbered without.

    Raises ConfigError for a missing or broken file, and for arrays that are not uint8 images and whole-number labels.
    """
    file = request.path
    if not file.is_file():
        raise ConfigError(f"--data-dir names no npz file: {file} does not exist or is a folder")
    try:
        with zipfile.ZipFile(file) as archive:
            promised = {key: _promised(archive, f"{key}.npy") for key in KEYS if f"{key}.npy" in archive.namelist()}
        _check_promises(promised, file)
        with np.load(file, allow_pickle=False) as arrays:
            x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    except ConfigError:
        raise
    except Exception as error:  # whatever reading raises, the file is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{file} cannot be read as npz: {reason}") from None
    train, test = _checked(x_train, y_train, file, "train"), _checked(x_test, y_test, file, "test")
    labels = np.union1d(train.labels, test.labels)
    if len(labels) > max(FEW_CLASSES, len(train)):
        raise ConfigError(f"{file} has {len(train):,} examples to train on, but {len(labels):,} labels: too many classes")
    _, names = classes_of_ids(labels.tolist(), str(file))
    train, test = (replace(part, labels=np.searchsorted(labels, part.labels)) for part in (train, test))
    return Source(train, test, len(labels), names)


def _promised(archive: zipfile.ZipFile, name: str) -> int:
    """Return how many bytes an array takes by its header; raises ValueError where that is not what the archive holds."""
    with archive.open(name) as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(opened)
        size, held = prod(shape) * dtype.itemsize, archive.getinfo(name).file_size - opened.tell()
    if size != held and not dtype.hasobject:
        raise ValueError(f"the header of {name} promises {size:,} bytes, but there are {held:,}")
    return size


def _check_promises(promised: dict[str, int], file: Path) -> None:
    if missing := [key for key in KEYS if key not in promised]:
        raise ConfigError(f"{file} lacks {', '.join(missing)}: an npz data set holds {', '.join(KEYS)}")
    unpacked, packed = sum(promised.values()), file.stat().st_size
    if unpacked > max(ALWAYS_FINE, MOST_UNPACKED * packed):
        raise ConfigError(f"{file} would take {unpacked:,} bytes, far more than its {packed:,}: no images shrink like that")


def _checked(images: np.ndarray, labels: np.ndarray, file: Path, part: str) -> Examples:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ConfigError(
            f"x_{part} of {file} must be uint8 (examples, height, width, 3), not {images.dtype} {images.shape}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"y_{part} of {file} must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}")
    if not images.size:
        raise ConfigError(f"x_{part} of {file} is empty: {images.shape}")
    if max(images.shape[1:3]) > LONGEST * min(images.shape[1:3]):
        raise ConfigError(f"x_{part} of {file} holds images of {images.shape[1:3]} pixels: no side is {LONGEST} others long")
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ConfigError(f"y_{part} of {file} holds a label that is not between 0 and {MOST_CLASSES - 1:,}")
    return Examples(images, labels.astype(np.int64))
