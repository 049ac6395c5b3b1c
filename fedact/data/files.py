"""Files as an array: each is decoded when it is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

MOST_NAMED = 3


def some_of(sentences: Sequence[str]) -> str:
    """Return the first few of what is wrong, as one line."""
    return "; ".join(sentences[:MOST_NAMED]) + ("; ..." if len(sentences) > MOST_NAMED else "")


@dataclass(frozen=True, eq=False)
class Files(ABC):
    """(files, *each): the files, relative to root, as they lie on the disk."""

    root: Path
    files: Sequence[str]

    word: ClassVar[str] = "pictures"
    """What the files are called in a sentence."""

    @property
    @abstractmethod
    def each(self) -> tuple[int, ...]:
        """The shape of what a file is decoded to."""

    @property
    @abstractmethod
    def how(self) -> str:
        """Words that tell the way of decoding from every other: where they change, all is decoded anew."""

    @property
    @abstractmethod
    def size(self) -> str:
        """The size of what a file is decoded to, for a sentence."""

    @abstractmethod
    def decoded(self, row: int) -> np.ndarray:
        """Return what one file holds; raises whatever Pillow does where it cannot be read, and ValueError with a reason."""

    @property
    def follows_from(self) -> Sequence[str]:
        """All files that must not have changed for what was decoded to hold."""
        return self.files

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.each)

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
        decoded = np.empty((len(rows), *self.each), self.dtype)
        for place, row in enumerate(rows):
            decoded[place] = self.decoded(row)
        return decoded
