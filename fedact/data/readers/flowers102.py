"""Flowers-102, flowers of Britain: torchvision's folder flowers-102 in --data-dir, else downloaded."""

from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source
from fedact.data.readers.lists import fetch, labelled_pictures

CLASSES = 102
FILES = ("102flowers.tgz (unpacked)", "imagelabels.mat", "setid.mat")


def load(request: Request) -> Source:
    """Return the flowers of the published training and validation sets, and those of the test set for testing.

    Raises ConfigError, with what to put where, if they are missing and cannot be downloaded, and for broken labels.
    """
    from fedact.vision import datasets

    folder = request.path / "flowers-102"
    needed = [folder / "jpg", folder / "imagelabels.mat", folder / "setid.mat"]
    fetch("Flowers-102", datasets.Flowers102, request.path, needed, f"{', '.join(FILES)} in {folder}")
    labels = _numbers(folder / "imagelabels.mat", "labels", CLASSES)
    trained, validated, tested = (_numbers(folder / "setid.mat", key, len(labels)) for key in ("trnid", "valid", "tstid"))

    def part(numbers: np.ndarray) -> Examples:
        files = [f"image_{number:05d}.jpg" for number in numbers]
        return labelled_pictures(
            folder / "jpg", files, (labels[numbers - 1] - 1).tolist(), request.side, folder / "setid.mat"
        )

    names = tuple(datasets.Flowers102.classes)
    return Source(part(np.concatenate([trained, validated])), part(tested), CLASSES, names)


def _numbers(file: Path, key: str, most: int) -> np.ndarray:
    """Return an array of Matlab's as int64; raises ConfigError where it is not whole numbers from 1 to the most."""
    from scipy.io import loadmat

    try:
        numbers: np.ndarray = np.asarray(loadmat(file, variable_names=[key])[key]).ravel()
        fine = len(numbers) > 0 and bool(((numbers >= 1) & (numbers <= most) & (numbers == np.floor(numbers))).all())
    except Exception as error:  # whatever reading raises, the file is broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{file} cannot be read as Matlab's {key}: {reason}") from None
    if not fine:
        raise ConfigError(f"{key} in {file} must hold whole numbers from 1 to {most:,}")
    return numbers.astype(np.int64)
