"""Rows of arrays on disk, kept between runs: memory-mapped, bounded, and safe for several processes at once.

A cache is a folder with one file a column and one file of marks, a byte a row. A row's values are on the disk before its
mark is: whenever a process stops, and whoever else writes the same row meanwhile, what is marked is whole.
"""

import os
import shutil
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np

from fedact.storage.locks import locked
from fedact.storage.system import extend, reserve, sync_data, write_at

MARKS = "there"
"""The file of marks: 1 for a row that is there, else 0."""


@dataclass(frozen=True)
class Column:
    """One array of a cache: the name of its file, its element type, and the shape of a row."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes a row."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class RowCache:
    """An open cache.

    values: for each column a read-only memory map (rows, ...); a row that is not there reads as anything. marks: uint8
    (rows,), 1 where a row is there. files: of the columns and, last, of the marks, open as long as the cache is used: who
    removes or replaces a cache meanwhile takes nothing away, and no write goes astray.
    """

    folder: Path
    values: tuple[np.ndarray, ...]
    marks: np.ndarray
    files: tuple[FileIO, ...]

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row whether it is there, as bool; rows beyond the last never are."""
        found = rows < len(self.marks)
        found[found] = self.marks[rows[found]] == 1
        return found

    def write(self, rows: np.ndarray, *columns: np.ndarray) -> None:
        """Write rows' values, an array (rows, ...) a column; rows beyond the last are left out, and none is marked yet.

        Raises OSError where the disk is full.
        """
        for file, values in zip(self.files, columns, strict=False):
            for row, value in zip(rows.tolist(), values, strict=True):
                if row < len(self.marks):
                    write_at(file.fileno(), value.tobytes(), row * value.nbytes)

    def mark(self, rows: np.ndarray) -> None:
        """Mark rows that were written as there, once all that was written is on the disk."""
        *columns, marks = (file.fileno() for file in self.files)
        for column in columns:
            sync_data(column)
        for row in rows[rows < len(self.marks)].tolist():
            write_at(marks, b"\1", row)

    @contextmanager
    def alone(self, waiting: str) -> Iterator[None]:
        """Keep other processes out of the same block; ``waiting`` is logged where another is in it."""
        with locked(self.folder, waiting):
            yield


def open_rows(root: Path, key: str, columns: Sequence[Column], rows: int, most_bytes: int | None = None) -> RowCache:
    """Return the cache of a key under a root folder, a new one where its files are missing or of other sizes.

    most_bytes: what all caches under the root may take. The least recently opened others are removed for it, the room for
    all rows is taken on the disk at once, and ``rows`` must be few enough; None bounds nothing, and rows take their room
    when they are written. Raises OSError where the disk has no room, or nothing may be written.
    """
    folder = root / key
    sizes = {folder / column.name: rows * column.nbytes for column in columns} | {folder / MARKS: rows}
    root.mkdir(parents=True, exist_ok=True)
    # Nobody makes or removes a cache between the opening of its first file and of its last. Where nothing may be written,
    # what is there can be read.
    with locked(root) if os.access(root, os.W_OK) else nullcontext():
        if most_bytes is not None:
            _remove_oldest(root, folder, most_bytes - sum(sizes.values()))
        if not all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            for file, size in sizes.items():
                with file.open("wb", buffering=0) as opened:
                    (extend if most_bytes is None else reserve)(opened.fileno(), size)
        if os.access(folder, os.W_OK):
            os.utime(folder)
        files = tuple(FileIO(file, "r+" if os.access(file, os.W_OK) else "r") for file in sizes)
    shapes = [*((rows, *column.shape) for column in columns), (rows,)]
    types = [*(column.dtype for column in columns), np.dtype(np.uint8)]
    *values, marks = (_mapped(*each) for each in zip(files, types, shapes, strict=True))
    cache = RowCache(folder, tuple(values), marks, files)
    weakref.finalize(cache, _close, files)
    return cache


def _close(files: Iterable[FileIO]) -> None:
    for file in files:
        file.close()


def _mapped(file: FileIO, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(file, dtype, "r", shape=shape) if prod(shape) else np.zeros(shape, dtype)


def _remove_oldest(root: Path, folder: Path, most_bytes: int) -> None:
    """Remove the caches that were opened longest ago, until all but the one in ``folder`` take no more than the bytes."""
    others = sorted(
        (path for path in root.iterdir() if path != folder and path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    for path in others:
        if sum(sizes.values()) <= most_bytes:
            return
        # Windows removes no file that another process has open.
        shutil.rmtree(path, ignore_errors=True)
        del sizes[path]
