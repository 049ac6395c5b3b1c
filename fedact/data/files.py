"""Files as an array of what they are decoded to, when it is indexed."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

MOST_NAMED = 3


def some_of(sentences: Sequence[str]) -> str:
    """Return the first three sentences as one line, with "..." where there are more."""
    return "; ".join(sentences[:MOST_NAMED]) + ("; ..." if len(sentences) > MOST_NAMED else "")


@dataclass(frozen=True, eq=False)
class Files(ABC):
    """An array (files, *item_shape) of files, decoded where it is indexed.

    files: their paths, relative to root.
    """

    root: Path
    files: Sequence[str]

    noun: ClassVar[str] = "pictures"
    """What the files are called in messages."""

    @property
    @abstractmethod
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one decoded file."""

    @property
    @abstractmethod
    def decoding(self) -> str:
        """A text that changes with the result of decoding; it is part of the cache's key."""

    @property
    @abstractmethod
    def item_size(self) -> str:
        """The size of one decoded file, for messages."""

    @abstractmethod
    def decode(self, row: int) -> np.ndarray:
        """Return one file's array (*item_shape); raises what Pillow does for a broken file, and ValueError with a reason."""

    @property
    def dependencies(self) -> Sequence[str]:
        """The paths, relative to root, of all files that a decoded array follows from."""
        return self.files

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.item_shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, positions: np.ndarray | slice) -> np.ndarray:
        rows = np.arange(len(self))[positions]
        decoded = np.empty((len(rows), *self.item_shape), self.dtype)
        for place, row in enumerate(rows):
            decoded[place] = self.decode(row)
        return decoded
