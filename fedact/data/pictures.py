"""Picture files as an array: each is decoded when it is asked for, to a square of RGB."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
"""Whatever a file is called: others, such as EPS, are read by running a program."""
WIDE_MODES = ("I", "F")
"""How the names of modes with more than eight bits a colour begin."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """uint8 (files, side, side, 3): the files, relative to root, as they lie on the disk."""

    root: Path
    files: Sequence[str]
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), self.side, self.side, 3)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, positions: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[positions]
        decoded = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            decoded[place] = self.decoded(row)
        return decoded

    def decoded(self, row: int) -> np.ndarray:
        """Return one picture; raises whatever Pillow does where it cannot be read."""
        return decode(self.root / self.files[row], self.side)


def decode(file: Path, side: int) -> np.ndarray:
    """Return a picture as uint8 (side, side, 3): upright, in RGB, its shorter side scaled to the side, the middle of it.

    The scale is that of torchvision's Resize (bilinear, antialiased) and CenterCrop. An alpha channel is dropped.
    Raises whatever Pillow does for a broken file, and ValueError for one of more than eight bits a colour.
    """
    with Image.open(file, formats=FORMATS) as opened:
        if opened.mode.startswith(WIDE_MODES):
            raise ValueError(f"its mode is {opened.mode}: pictures have eight bits a colour")
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    # Only the part that is kept is scaled: a strip would become far longer than it is.
    return np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR, box=middle(*upright.size, side)))


def middle(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """Return the left, upper, right and lower bound of what is kept of a picture of this size, in its own pixels."""
    across, down = (_middle(length, min(width, height), side) for length in (width, height))
    return across[0], down[0], across[1], down[1]


def _middle(length: int, shorter: int, side: int) -> tuple[float, float]:
    """Return where the middle ``side`` pixels of a scaled side begin and end in the original."""
    scaled = side * length // shorter
    start = round((scaled - side) / 2)
    return start * length / scaled, (start + side) * length / scaled
