"""CIFAR-10 and CIFAR-100: torchvision's files and checksums, read as bytes."""

import hashlib
import pickletools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Examples, Request, Source

ARCHIVES = {10: ("cifar-10-python.tar.gz", "cifar-10-batches-py"), 100: ("cifar-100-python.tar.gz", "cifar-100-python")}
LABELS = {10: "labels", 100: "fine_labels"}
PIXELS = 3 * 32 * 32
IN_A_LIST = ("EMPTY_LIST", "MARK", "APPENDS", "APPEND", "BINPUT", "LONG_BINPUT", "MEMOIZE")
"""What stands among the numbers of a list."""


def load(request: Request, classes: int) -> Source:
    """Return CIFAR from --data-dir, downloaded where it is missing.

    Raises ConfigError, with what to put where, if it is missing and cannot be downloaded.
    """
    from fedact.vision import datasets

    utils = datasets.utils
    kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    parts = (kind.train_list, kind.test_list)
    try:
        if not all(
            utils.check_integrity(request.path / kind.base_folder / name, md5) for part in parts for name, md5 in part
        ):
            utils.download_and_extract_archive(kind.url, request.path, filename=kind.filename, md5=kind.tgz_md5)
        files = [[_verified(request.path / kind.base_folder / name, md5) for name, md5 in part] for part in parts]
    except (OSError, RuntimeError) as error:
        archive, folder = ARCHIVES[classes]
        raise ConfigError(
            f"CIFAR-{classes} is not complete in {request.path} and could not be downloaded ({error}): "
            f"put {archive} there, or its folder {folder}, or name another --data-dir"
        ) from None
    train, test = (_joined([_examples(file, LABELS[classes]) for file in part]) for part in files)
    return Source(train, test, classes, _names(request.path / kind.base_folder, kind.meta))


def _names(folder: Path, meta: dict[str, str]) -> tuple[str, ...]:
    """Return the classes' names, none where their file is not there as published: nothing is learned from them."""
    try:
        content = _verified(folder / meta["filename"], meta["md5"])
    except (OSError, RuntimeError):
        return ()
    operations = [(operation.name, value) for operation, value, _ in pickletools.genops(content)]
    return tuple(_listed_after(operations, meta["key"], str))


def _verified(file: Path, md5: str) -> bytes:
    """Return a file's bytes; raises RuntimeError where they are not the published ones."""
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise RuntimeError(f"{file} is not the published file")
    return content


def _examples(content: bytes, key: str) -> Examples:
    """Return the images and labels in a pickled batch, whose operations are read and never run."""
    operations = [(operation.name, value) for operation, value, _ in pickletools.genops(content)]
    pixels = max((value for _, value in operations if isinstance(value, str | bytes)), key=len)
    raw = pixels.encode("latin-1") if isinstance(pixels, str) else pixels
    labels = np.fromiter(_listed_after(operations, key, int), dtype=np.int64)
    images = np.frombuffer(raw, np.uint8).reshape(len(labels), 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), labels)


def _listed_after(operations: list[tuple[str, Any]], key: str, kind: type) -> Iterator[Any]:
    """Yield what is of a kind in the list that follows a key."""
    start = next(place for place, (_, value) in enumerate(operations) if value == key)
    for name, value in operations[start + 1 :]:
        if name not in IN_A_LIST and type(value) is kind:
            yield value
        elif name not in IN_A_LIST:
            return


def _joined(parts: list[Examples]) -> Examples:
    return Examples(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


cifar10 = partial(load, classes=10)
cifar100 = partial(load, classes=100)
