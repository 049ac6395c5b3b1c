"""Tensors, lists, Pillow pictures and the items of a data set as arrays."""

from math import prod
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from fedact.config.errors import ConfigError, shortened
from fedact.config.paths import cache_folder
from fedact.data.pictures import SIXTEEN_BITS, WIDE_MODES
from fedact.storage.system import reserve

NAMES = ("x", "y", "clients")
"""What an item holds, the last perhaps."""
ON_DISK_FROM = 2**30
"""Bytes of a data set's inputs from which on they are not collected in memory."""


def as_array(value: Any, what: str) -> np.ndarray:
    """Return a tensor, a list or whatever numpy takes as an array; raises ConfigError for what is no array."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ConfigError(f"{what} is an array with masked values: fill them, or leave these examples out")
    if type(value).__module__.partition(".")[0] == "PIL":
        return _pixels(value, what)
    try:
        array = _of_tensor(value) if isinstance(value, torch.Tensor) else np.asarray(value)
    except Exception as error:  # whatever a stranger's class raises
        raise ConfigError(f"{what} is no array: {_reason(error)}") from None
    if array.dtype.hasobject and array.size and all(isinstance(each, str) for each in array.flat):
        # As pandas keeps texts.
        return array.astype(str)
    return array


def _of_tensor(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _pixels(picture: Any, what: str) -> np.ndarray:
    """Return a Pillow picture's values; raises ConfigError for one whose mode has no fixed range."""
    if picture.mode.startswith(WIDE_MODES) and picture.mode != SIXTEEN_BITS:
        raise ConfigError(f"{what} is a picture of mode {picture.mode}, of no fixed range: give an array")
    return np.asarray(picture if picture.mode in ("L", "RGB", SIXTEEN_BITS) else picture.convert("RGB"))


def of_items(data: Any, name: str) -> list[np.ndarray]:
    """Return inputs, labels and, where items say it, whose they are, each as an array of all items.

    Raises ConfigError for items that cannot be read, are no pairs, or are of several shapes.
    """
    try:
        count = len(data)
    except Exception as error:  # whatever a stranger's class raises
        raise ConfigError(f"{name} does not say how long it is: {_reason(error)}") from None
    if not count:
        raise ConfigError(f"{name} is empty")
    x, others = np.empty(0), []
    for row in range(count):
        try:
            item = data[row]
        except Exception as error:
            raise ConfigError(f"item {row} of {name} cannot be read: {_reason(error)}") from None
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            raise ConfigError(f"items of {name} must be (x, y) or (x, y, client), not {shortened(item)} (item {row})")
        own = as_array(item[0], f"x of item {row} of {name}")
        if not row:
            x = _room((count, *own.shape), own.dtype)
        if (own.shape, own.dtype) != (x.shape[1:], x.dtype):
            raise ConfigError(
                f"item {row} of {name} is {own.dtype} {own.shape}, the first is {x.dtype} {x.shape[1:]}: all must be alike"
            )
        x[row] = own
        others.append([_plain(value) for value in item[1:]])
        if len(others[row]) != len(others[0]):
            raise ConfigError(f"item {row} of {name} has {len(item)} values, the first has {len(others[0]) + 1}")
    columns = zip(NAMES[1:], zip(*others, strict=True), strict=False)
    return [x, *(as_array(list(column), f"{what} of {name}") for what, column in columns)]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return an array to write to: in memory, or where it is large in a file of the cache folder that nobody else sees."""
    if prod(shape) * dtype.itemsize < ON_DISK_FROM or dtype.hasobject:
        return np.empty(shape, dtype)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            reserve(file.fileno(), prod(shape) * dtype.itemsize)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise ConfigError(f"{folder} has no room for {prod(shape) * dtype.itemsize:,} bytes: {error.strerror}") from None


def _plain(value: Any) -> Any:
    """Return a number or text without its tensor or array of one element."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
