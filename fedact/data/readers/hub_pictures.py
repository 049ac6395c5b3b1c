"""The pictures of a Hugging Face data set, encoded on disk as they are there, as an array that decodes what is indexed."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from os.path import commonpath
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image

from fedact.config.errors import ConfigError
from fedact.data.files import Files
from fedact.data.pictures import FORMATS, middle_square, read_upright

LOOKED_AT = 64
"""So many pictures say whether all are grey, and from which size on none would be larger."""
GREY_MODES = ("L", "1", "LA")


@dataclass(frozen=True, eq=False)
class HubRows(Files):
    """The rows of a column on disk.

    files: what the rows are called. sources: the files that they lie in, relative to root. key: which rows of these.
    """

    sources: tuple[str, ...]
    key: str

    @property
    def dependencies(self) -> Sequence[str]:
        return self.sources


def place_of(dataset: Any, column: str, split: str) -> dict[str, Any]:
    """Return the fields of ``HubRows`` for a column; raises ConfigError where it lies in no file."""
    sources = [str(each["filename"]) for each in dataset.cache_files]
    if not sources:
        raise ConfigError(f"the rows of {split} lie in no file")
    root = Path(commonpath([str(Path(file).parent) for file in sources]))
    return {
        "root": root,
        "files": tuple(f"row {row} of {split}" for row in range(len(dataset))),
        "sources": tuple(str(Path(file).relative_to(root)) for file in sources),
        "key": f"{column} of {split}, {len(dataset)} rows",
    }


@dataclass(frozen=True, eq=False)
class HubPictures(HubRows):
    """uint8 (rows, side, side, 1 or 3): the middle square of each picture of a column, grey or in RGB.

    column: Arrow's, of encoded pictures or their paths.
    """

    side: int
    grey: bool
    column: Any

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (self.side, self.side, 1 if self.grey else 3)

    @property
    def decoding(self) -> str:
        return f"hub {self.key}, middle square, bilinear, 1 {PIL.__version__} {self.item_shape} "

    @property
    def item_size(self) -> str:
        return f"{self.side} px"

    def decode(self, row: int) -> np.ndarray:
        if self.grey and _look(self.column, row)[1] not in GREY_MODES:
            raise ValueError("it has colours, where the first that were looked at are grey")
        pixels = middle_square(read_upright(_opened(self.column, row), "L" if self.grey else "RGB"), self.side)
        return pixels[..., None] if self.grey else pixels


def hub_pictures(dataset: Any, column: str, split: str, side: int) -> HubPictures:
    """Return the pictures of a column, decoded where they are indexed: no larger than the pictures themselves.

    side: of the decoded squares at most, in pixels.
    """
    cells = dataset.with_format("arrow")[:].column(column)
    looked = []
    for row in np.unique(np.linspace(0, len(cells) - 1, LOOKED_AT).astype(int)).tolist() if len(cells) else ():
        # One that is broken is named when all are decoded.
        with suppress(Exception):
            looked.append(_look(cells, row))
    return HubPictures(
        **place_of(dataset, column, split),
        side=min([side, *([max(shorter for shorter, _ in looked)] if looked else [])]),
        grey=bool(looked) and all(mode in GREY_MODES for _, mode in looked),
        column=cells,
    )


def _look(column: Any, row: int) -> tuple[int, str]:
    """Return the shorter side and the mode of a picture, of which only the header is read."""
    with Image.open(_opened(column, row), formats=FORMATS) as opened:
        return min(opened.size), opened.mode


def _opened(column: Any, row: int) -> Path | BinaryIO:
    cell = column[int(row)].as_py()
    if not cell or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("there is no picture")
    return BytesIO(cell["bytes"]) if cell.get("bytes") else Path(cell["path"])
