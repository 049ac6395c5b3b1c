"""Any data set in one ``.npz`` file: x_train, y_train, x_test, y_test."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fedact.data.examples import Examples, Source
from fedact.data.request import Request
from fedact.errors import ConfigError

MOST_CLASSES = 100_000
KEYS = ("x_train", "y_train", "x_test", "y_test")


def load(request: Request) -> Source:
    """Return the file's examples.

    Raises ConfigError for a missing or broken file, and for arrays that are not uint8 images and whole-number labels.
    """
    file = request.path
    if not file.is_file():
        raise ConfigError(f"--data-dir names no npz file: {file} does not exist or is a folder")
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ConfigError(f"{file} holds one array: an npz data set holds {', '.join(KEYS)}")
        with loaded as arrays:
            missing = [key for key in KEYS if key not in arrays]
            if missing:
                raise ConfigError(f"{file} lacks {', '.join(missing)}: an npz data set holds {', '.join(KEYS)}")
            x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} cannot be read as npz: {error}") from None
    train, test = _checked(x_train, y_train, file, "train"), _checked(x_test, y_test, file, "test")
    return Source(train, test, int(max(train.labels.max(), test.labels.max())) + 1)


def _checked(images: np.ndarray, labels: np.ndarray, file: Path, part: str) -> Examples:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ConfigError(
            f"x_{part} of {file} must be uint8 (examples, height, width, 3), not {images.dtype} {images.shape}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"y_{part} of {file} must be {len(images)} whole numbers, not {labels.dtype} {labels.shape}")
    if not images.size:
        raise ConfigError(f"x_{part} of {file} is empty: {images.shape}")
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ConfigError(f"y_{part} of {file} holds a label that is not between 0 and {MOST_CLASSES - 1:,}")
    return Examples(images, labels.astype(np.int64))
