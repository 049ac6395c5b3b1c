"""Masks: a class for each pixel of a picture, out of a PNG that holds an id for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from fedact.data.files import Files
from fedact.data.pictures import Frame, fit_into_frame, upright_size

VOID = 255
"""The class of a pixel that counts for nothing."""
IDS = 256
"""How many there can be in a file of eight bits a pixel."""
MODES = ("L", "P")
PACKED_GRAYS = ("L;2", "L;4")
"""Grays of fewer bits, which Pillow spreads over eight: the ids are lost."""


@dataclass(frozen=True, eq=False)
class Masks(Files):
    """uint8 (files, height, width): the class of each pixel of a scene in its frame, VOID around it.

    classes: the class of each id, or VOID, for 256 ids.
    """

    frame: Frame
    classes: bytes

    noun = "masks"

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.frame

    @property
    def decoding(self) -> str:
        return f"mask, nearest, 1 {PIL.__version__} {self.frame} {self.classes.hex()} "

    @property
    def item_size(self) -> str:
        return f"{self.frame[0]} x {self.frame[1]} px"

    def decode(self, row: int) -> np.ndarray:
        classes = np.frombuffer(self.classes, np.uint8)[read_ids(self.root / self.files[row])]
        return fit_into_frame(Image.fromarray(classes), self.frame, Image.Resampling.NEAREST, VOID)


@dataclass(frozen=True, eq=False)
class Survey(Files):
    """uint32 (files, 256): how many pixels of each whole mask have each id, whatever the frame; pictures: one for each."""

    pictures: Sequence[str]

    noun = "masks"

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (IDS,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint32)

    @property
    def decoding(self) -> str:
        return f"ids counted, 1 {PIL.__version__} "

    @property
    def item_size(self) -> str:
        return "full size to count their classes"

    @property
    def dependencies(self) -> Sequence[str]:
        return (*self.files, *self.pictures)

    def decode(self, row: int) -> np.ndarray:
        ids, picture = read_ids(self.root / self.files[row]), self.root / self.pictures[row]
        try:
            size = upright_size(picture)
        except Exception as error:  # whatever reading raises, the file is broken
            raise ValueError(f"its picture {picture} cannot be read: {' '.join(str(error).split())}") from None
        height, width = ids.shape
        if (width, height) != size:
            raise ValueError(f"it is {width} x {height} pixels, but its picture {picture} {size[0]} x {size[1]}")
        return count_ids(ids)


def read_ids(file: Path) -> np.ndarray:
    """Return the ids of a mask as uint8 (height, width); raises ValueError, or what Pillow does, where it is none."""
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.mode not in MODES or any(part[3] in PACKED_GRAYS for part in opened.tile):
                raise ValueError(f"its mode is {opened.mode}, but a mask has one id of eight bits a pixel (mode L or P)")
            return np.array(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError("it is no PNG, as a mask must be") from None


def count_ids(ids: np.ndarray) -> np.ndarray:
    """Return the number of pixels of each of 256 ids, uint32 (256,)."""
    return np.bincount(ids.ravel(), minlength=IDS).astype(np.uint32)


def count_classes(counts: np.ndarray, classes: bytes) -> np.ndarray:
    """Return pixels by class, int64 (masks, 256), from pixels by id, (masks, 256).

    classes: the class of each id, 256 bytes.
    """
    summed = np.zeros_like(counts, np.int64)
    np.add.at(summed.T, np.frombuffer(classes, np.uint8), counts.T)
    return summed


def most_frequent_class(counts: np.ndarray) -> np.ndarray:
    """Return the most frequent class of each mask, VOID left aside: the first of several, 0 where all is void.

    counts: (masks, 256), of classes.
    """
    classes: np.ndarray = np.argmax(counts[:, :VOID], axis=1)
    return classes.astype(np.int64)


def class_table(ids: Mapping[int, int]) -> bytes:
    """Return the class of each of 256 ids as 256 bytes, VOID for an id that is not in ``ids``."""
    return bytes(ids.get(number, VOID) for number in range(IDS))


def identity_classes(classes: int, void: int) -> dict[int, int]:
    """Return the class of each id where an id is its class, and ``void`` is VOID."""
    return {**{number: number for number in range(classes)}, void: VOID}
