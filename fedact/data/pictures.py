"""Picture files as an array of squares of RGB."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from fedact.data.files import Files

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
"""Whatever a file is called: others, such as EPS, are read by running a program."""
WIDE_MODES = ("I", "F")
"""How the names of modes with more than eight bits a colour begin."""


@dataclass(frozen=True, eq=False)
class Pictures(Files):
    """uint8 (files, side, side, 3): the middle square of each picture."""

    side: int

    @property
    def each(self) -> tuple[int, ...]:
        return (self.side, self.side, 3)

    @property
    def how(self) -> str:
        return f"middle square, bilinear, 1 {PIL.__version__} {self.side} "

    @property
    def size(self) -> str:
        return f"{self.side} px"

    def decoded(self, row: int) -> np.ndarray:
        return decode(self.root / self.files[row], self.side)


def decode(file: Path, side: int) -> np.ndarray:
    """Return a picture as uint8 (side, side, 3): upright, in RGB, its shorter side scaled to the side, the middle of it.

    The scale is that of torchvision's Resize (bilinear, antialiased) and CenterCrop. An alpha channel is dropped.
    Raises whatever Pillow does for a broken file, and ValueError for one of more than eight bits a colour.
    """
    picture = upright(file)
    # Only the part that is kept is scaled: a strip would become far longer than it is.
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=middle(*picture.size, side)))


def upright(file: Path) -> Image.Image:
    """Return a picture in RGB, turned as its camera says; raises as ``decode`` does."""
    with Image.open(file, formats=FORMATS) as opened:
        if opened.mode.startswith(WIDE_MODES):
            raise ValueError(f"its mode is {opened.mode}: pictures have eight bits a colour")
        return ImageOps.exif_transpose(opened).convert("RGB")


def middle(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """Return the left, upper, right and lower bound of what is kept of a picture of this size, in its own pixels."""
    across, down = (_middle(length, min(width, height), side) for length in (width, height))
    return across[0], down[0], across[1], down[1]


def _middle(length: int, shorter: int, side: int) -> tuple[float, float]:
    """Return where the middle ``side`` pixels of a scaled side begin and end in the original."""
    scaled = side * length // shorter
    start = round((scaled - side) / 2)
    return start * length / scaled, (start + side) * length / scaled
