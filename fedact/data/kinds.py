"""What an array of inputs holds: pictures, which are scaled and cut, or series, which go to a network as they are."""

from collections.abc import Iterator
from math import prod
from typing import Any, Protocol

import numpy as np

from fedact.config.errors import ConfigError

GREY, COLOUR = 1, 3
"""Channels of a picture, the last dimension."""
LONGEST = 50
"""Sides: a longer strip would be scaled up to far more pixels than are kept of it."""
BYTES_AT_ONCE = 32_000_000


class Block(Protocol):
    """What can be read some rows at a time: an array, rows of one, or files."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, positions: slice, /) -> np.ndarray: ...


def in_blocks(array: Block) -> Iterator[np.ndarray]:
    """Yield the rows in order, some megabytes at a time: no more of them are copied at once."""
    each = max(1, prod(array.shape[1:]) * array.dtype.itemsize)
    at_once = max(1, BYTES_AT_ONCE // each)
    for start in range(0, len(array), at_once):
        yield array[start : start + at_once]


def is_picture(shape: tuple[int, ...]) -> bool:
    """Tell whether inputs of this shape, examples first, are pictures: (examples, height, width, 1 or 3)."""
    return len(shape) == 4 and shape[3] in (GREY, COLOUR)


def checked_inputs(x: np.ndarray, what: str) -> np.ndarray:
    """Return inputs in the form in which they are kept.

    Pictures: uint8, uint16 or float32 (examples, height, width, 1 or 3); whole numbers in three dimensions are grey ones,
    and channels before height and width are put last. Series: float32 of any other shape of two to four dimensions.

    what: names them in errors. Raises ConfigError for anything else: other numbers of dimensions, no examples, objects,
    texts, values that are not finite, whole numbers that no picture has, and strips.
    """
    if x.dtype.kind not in "iuf":
        raise ConfigError(f"{what} must be whole numbers or floats, not {x.dtype} {x.shape}")
    if not 2 <= x.ndim <= 4:
        raise ConfigError(
            f"{what} must have 2 to 4 dimensions, not {x.ndim}: pictures are (examples, height, width, 1 or 3), "
            "series (examples, channels, steps), vectors (examples, features)"
        )
    if not x.size:
        raise ConfigError(f"{what} is empty: {x.dtype} {x.shape}")
    if x.dtype.kind != "f" and x.ndim > 2:
        return _pictures(_whole(x if x.ndim == 4 else x[..., None], what), what)
    x = _finite(x, what)
    return _pictures(x, what) if is_picture(x.shape) or is_picture(_channels_last(x).shape) else _in_order(x)


def _channels_last(x: np.ndarray) -> np.ndarray:
    """Return pictures with their channels behind height and width, where these are before; others as they are."""
    return x if x.ndim != 4 or is_picture(x.shape) else x.transpose(0, 2, 3, 1)


def _pictures(x: np.ndarray, what: str) -> np.ndarray:
    pictures = _channels_last(x)
    if not is_picture(pictures.shape):
        raise ConfigError(
            f"{what} must be pictures (examples, height, width, 1 or 3), as whole numbers are, not {x.dtype} {x.shape}; "
            "series and other inputs are floats"
        )
    if max(pictures.shape[1:3]) > LONGEST * min(pictures.shape[1:3]):
        raise ConfigError(f"{what} holds images of {pictures.shape[1:3]} pixels: no side is {LONGEST} others long")
    return _in_order(pictures)


def _in_order(x: np.ndarray) -> np.ndarray:
    """Return an array in C order; itself where it is, so that a memory map stays one."""
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


def _whole(x: np.ndarray, what: str) -> np.ndarray:
    """Return whole numbers as uint8, or as uint16 where they were, or are, larger; raises ConfigError for others."""
    if x.dtype.kind == "u" and x.dtype.itemsize <= 2:
        return x.astype(x.dtype.newbyteorder("="), copy=False)
    least, most = int(x.min()), int(x.max())
    for kind in (np.uint8, np.uint16):
        if least >= 0 and most <= np.iinfo(kind).max:
            return x.astype(kind)
    raise ConfigError(
        f"{what} holds whole numbers from {least:,} to {most:,}: pictures go from 0 to 255 or to 65,535; "
        "series and other inputs are floats"
    )


def _finite(x: np.ndarray, what: str) -> np.ndarray:
    """Return numbers as float32; raises ConfigError for one that is not finite, also for being too large."""
    with np.errstate(over="ignore"):
        x = x if x.dtype == np.float32 else np.asarray(x).astype(np.float32)
    first = 0
    for block in in_blocks(x):
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            raise ConfigError(
                f"{what} holds a value that is not finite in float32, in example {first + int(np.argmin(finite))}"
            )
        first += len(block)
    return x
