"""Masks: a class for each pixel of a picture, out of a PNG that holds an id for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from fedact.data.files import Files
from fedact.data.pictures import Frame, framed, upright_size

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

    word = "masks"

    @property
    def each(self) -> tuple[int, ...]:
        return self.frame

    @property
    def how(self) -> str:
        return f"mask, nearest, 1 {PIL.__version__} {self.frame} {self.classes.hex()} "

    @property
    def size(self) -> str:
        return f"{self.frame[0]} x {self.frame[1]} px"

    def decoded(self, row: int) -> np.ndarray:
        classes = np.frombuffer(self.classes, np.uint8)[read_ids(self.root / self.files[row])]
        return framed(Image.fromarray(classes), self.frame, Image.Resampling.NEAREST, VOID)


@dataclass(frozen=True, eq=False)
class Survey(Files):
    """uint32 (files, 256): how many pixels of each whole mask have each id, whatever the frame; pictures: one for each."""

    pictures: Sequence[str]

    word = "masks"

    @property
    def each(self) -> tuple[int, ...]:
        return (IDS,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint32)

    @property
    def how(self) -> str:
        return f"ids counted, 1 {PIL.__version__} "

    @property
    def size(self) -> str:
        return "full size to count their classes"

    @property
    def follows_from(self) -> Sequence[str]:
        return (*self.files, *self.pictures)

    def decoded(self, row: int) -> np.ndarray:
        ids, picture = read_ids(self.root / self.files[row]), self.root / self.pictures[row]
        (height, width), size = ids.shape, _size_of(picture)
        if (width, height) != size:
            raise ValueError(f"it is {width} x {height} pixels, but its picture {picture} {size[0]} x {size[1]}")
        return counted(ids)


def read_ids(file: Path) -> np.ndarray:
    """Return the ids of a mask as uint8 (height, width); raises ValueError, or what Pillow does, where it is none."""
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.mode not in MODES or any(part[3] in PACKED_GRAYS for part in opened.tile):
                raise ValueError(f"its mode is {opened.mode}, but a mask has one id of eight bits a pixel (mode L or P)")
            return np.array(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError("it is no PNG, as a mask must be") from None


def counted(ids: np.ndarray) -> np.ndarray:
    """Return how many pixels have each of 256 ids, as uint32."""
    return np.bincount(ids.ravel(), minlength=IDS).astype(np.uint32)


def of_classes(counts: np.ndarray, classes: bytes) -> np.ndarray:
    """Return (masks, 256) counts of ids as those of classes, in whatever order the ids stand for them."""
    summed = np.zeros_like(counts, np.int64)
    np.add.at(summed.T, np.frombuffer(classes, np.uint8), counts.T)
    return summed


def dominant(counts: np.ndarray) -> np.ndarray:
    """Return the most frequent class of each mask, VOID left aside: the first of several, 0 where all is void.

    counts: (masks, 256), of classes.
    """
    classes: np.ndarray = np.argmax(counts[:, :VOID], axis=1)
    return classes.astype(np.int64)


def table(ids: Mapping[int, int]) -> bytes:
    """Return the class of each of 256 ids, VOID for those that are not named."""
    return bytes(ids.get(number, VOID) for number in range(IDS))


def counting_from_zero(classes: int, void: int) -> dict[int, int]:
    """Return the classes of ids that are classes themselves, but for one that counts for nothing."""
    return {**{number: number for number in range(classes)}, void: VOID}


def _size_of(picture: Path) -> tuple[int, int]:
    try:
        return upright_size(picture)
    except Exception as error:  # whatever reading raises, the file is broken
        raise ValueError(f"its picture {picture} cannot be read: {' '.join(str(error).split())}") from None
