"""CIFAR-10 and CIFAR-100 through torchvision."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedact.data.examples import Examples, Source
from fedact.data.request import Request
from fedact.errors import ConfigError

ARCHIVES = {10: ("cifar-10-python.tar.gz", "cifar-10-batches-py"), 100: ("cifar-100-python.tar.gz", "cifar-100-python")}


def load(request: Request, classes: int) -> Source:
    """Return CIFAR from --data-dir, downloaded where it is missing.

    Raises ConfigError, with what to put where, if it is missing and cannot be downloaded.
    """
    from torchvision import datasets

    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    return Source(_part(kind, request.path, True, classes), _part(kind, request.path, False, classes), classes)


def _part(kind: Any, path: Path, train: bool, classes: int) -> Examples:
    archive, folder = ARCHIVES[classes]
    try:
        # Nothing is downloaded where every file is there with its checksum.
        data = kind(path, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"CIFAR-{classes} is not complete in {path} and could not be downloaded ({error}): "
            f"put {archive} there, or its folder {folder}, or name another --data-dir"
        ) from None
    return Examples(data.data, np.asarray(data.targets, dtype=np.int64))


cifar10 = partial(load, classes=10)
cifar100 = partial(load, classes=100)
