"""Picture files as an array of squares of RGB."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageOps

from fedact.config.errors import ConfigError
from fedact.data.files import Files

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "PPM", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
"""Whatever a file is called: others, such as EPS, are read by running a program."""
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif",
    ".jfif", ".jfi", ".jpe", ".apng", ".dib", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif",
)  # fmt: skip
"""How names of pictures end, in small or capital letters."""
WIDE_MODES = ("I", "F")
"""How the names of modes with more than eight bits a colour begin."""
SIXTEEN_BITS = "I;16"
"""Of these the one with a fixed range."""


@dataclass(frozen=True, eq=False)
class Pictures(Files):
    """uint8 (files, side, side, 3): the middle square of each picture."""

    side: int

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (self.side, self.side, 3)

    @property
    def decoding(self) -> str:
        return f"middle square, bilinear, 1 {PIL.__version__} {self.side} "

    @property
    def item_size(self) -> str:
        return f"{self.side} px"

    def decode(self, row: int) -> np.ndarray:
        return decode(self.root / self.files[row], self.side)


def decode(file: Path | BinaryIO, side: int) -> np.ndarray:
    """Return a picture as uint8 (side, side, 3): upright, in RGB, its shorter side scaled to the side, the middle of it.

    The scale is that of torchvision's Resize (bilinear, antialiased) and CenterCrop. An alpha channel is dropped.
    Raises whatever Pillow does for a broken file, and ValueError for one of more than eight bits a colour.
    """
    return middle_square(read_upright(file), side)


def middle_square(picture: Image.Image, side: int) -> np.ndarray:
    """Return the middle square of a picture scaled to a side, uint8 (side, side, ...)."""
    # Only the part that is kept is scaled: a strip would become far longer than it is.
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=center_box(*picture.size, side)))


def read_upright(file: Path | BinaryIO, mode: str = "RGB") -> Image.Image:
    """Return a picture in RGB, or in another of Pillow's modes, turned as its camera says; raises as ``decode`` does."""
    with Image.open(file, formats=FORMATS) as opened:
        if opened.mode.startswith(WIDE_MODES):
            raise ValueError(f"its mode is {opened.mode}: pictures have eight bits a colour")
        return ImageOps.exif_transpose(opened).convert(mode)


def center_box(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """Return the left, upper, right and lower bound of what is kept of a picture of this size, in its own pixels."""
    across, down = (_middle(length, min(width, height), side) for length in (width, height))
    return across[0], down[0], across[1], down[1]


def _middle(length: int, shorter: int, side: int) -> tuple[float, float]:
    """Return where the middle ``side`` pixels of a scaled side begin and end in the original."""
    scaled = side * length // shorter
    start = round((scaled - side) / 2)
    return start * length / scaled, (start + side) * length / scaled


Frame = tuple[int, int]
"""Height and width, in pixels."""
GREY = 127
"""Of what a picture leaves empty."""
LONGEST = 50
"""Sides: a longer frame is some mistake, and takes far too many pixels."""
TURNED = (5, 6, 7, 8)
"""The orientations, by EXIF, of pictures that lie on their side."""


@dataclass(frozen=True, eq=False)
class Scenes(Files):
    """uint8 (files, height, width, 3): each picture as a whole, in the middle of the frame."""

    frame: Frame

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (*self.frame, 3)

    @property
    def decoding(self) -> str:
        return f"scene, bilinear, 1 {PIL.__version__} {self.frame} "

    @property
    def item_size(self) -> str:
        return f"{self.frame[0]} x {self.frame[1]} px"

    def decode(self, row: int) -> np.ndarray:
        return fit_into_frame(read_upright(self.root / self.files[row]), self.frame, Image.Resampling.BILINEAR, GREY)


def fit_into_frame(image: Image.Image, frame: Frame, how: Image.Resampling, empty: int) -> np.ndarray:
    """Return an image as uint8 (*frame, ...): scaled to fit, in the middle, and around it what stands for nothing."""
    scaled = np.asarray(image.resize(fitted_size(image.size, frame), how))
    whole = np.full((*frame, *scaled.shape[2:]), empty, np.uint8)
    top, left = ((long - short) // 2 for long, short in zip(frame, scaled.shape[:2], strict=True))
    whole[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return whole


def fitted_size(size: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Return the largest width and height with the proportions of this width and height that fit into a frame."""
    (width, height), (most_down, most_across) = size, frame
    if width * most_down <= most_across * height:
        return max(1, round(width * most_down / height)), most_down
    return most_across, max(1, round(height * most_across / width))


def frame_of(file: Path, side: int) -> Frame:
    """Return the frame with a picture's proportions whose shorter side has so many pixels.

    Raises ConfigError where the picture cannot be read, or is a strip.
    """
    try:
        width, height = upright_size(file)
    except Exception as error:  # whatever reading raises, the file is broken
        raise ConfigError(f"{file} cannot be read as a picture: {' '.join(str(error).split())}") from None
    shorter = min(width, height)
    if max(width, height) > LONGEST * shorter:
        raise ConfigError(f"{file} is {width} x {height} pixels: no side of a scene is {LONGEST} others long")
    return round(side * height / shorter), round(side * width / shorter)


def upright_size(file: Path) -> tuple[int, int]:
    """Return the width and height of a picture, turned as its camera says; only its header is read."""
    with Image.open(file, formats=FORMATS) as opened:
        # Pillow decodes a whole PNG in search of EXIF data that does not stand before the pixels.
        turned = (opened.format != "PNG" or "exif" in opened.info) and opened.getexif().get(0x0112) in TURNED
        return (opened.height, opened.width) if turned else opened.size
