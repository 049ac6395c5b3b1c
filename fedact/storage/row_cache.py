"""Rows of arrays on disk, kept between runs: memory-mapped, bounded, and safe for several processes at once.

A cache is a folder with one file a column and one file of checksums, four bytes a row. A row's values are on the disk
before its checksum is: whenever a process stops, and whoever else writes the same row meanwhile, a row with a checksum is
whole. One whose values are other ones by now is not there.
"""

import logging
import os
import shutil
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np

from fedact.storage.locks import locked
from fedact.storage.system import create, extend, make_private, reserve, sync_data, write_at

CHECKSUMS, CHECKSUM_BYTES = "checksums", 4
"""The file of a checksum for each row that is there, else 0; the bytes of one."""

log = logging.getLogger(__name__)


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

    values: for each column a read-only memory map (rows, ...); a row that is not there reads as anything. checksums: uint32
    (rows,), of the rows that are there, else 0. files: of the columns and, last, of the checksums, open as long as the cache
    is used: who removes or replaces a cache meanwhile takes nothing away, and no write goes astray. checked: bool (rows,),
    the rows that were right when this process looked.
    """

    folder: Path
    values: tuple[np.ndarray, ...]
    checksums: np.ndarray
    files: tuple[FileIO, ...]
    checked: np.ndarray

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Return for each row whether it is there and whole, as bool; rows beyond the last never are.

        A row's values are compared with its checksum once in a process.
        """
        found = rows < len(self.checksums)
        found[found] = self.checksums[rows[found]] != 0
        new = np.unique(rows[found][~self.checked[rows[found]]])
        whole = np.array([self._checksum(row) == self.checksums[row] for row in new.tolist()], bool)
        self.checked[new[whole]] = True
        if not whole.all():
            log.info(f"{(~whole).sum():,} rows of {self.folder} are not what was written there: they are made anew")
        found[found] = self.checked[rows[found]]
        return found

    def _checksum(self, row: int) -> int:
        """Return the checksum of a row's values, never 0."""
        checksum = 0
        for column in self.values:
            checksum = zlib.crc32(column[row : row + 1].tobytes(), checksum)
        return checksum or 1

    def write(self, rows: np.ndarray, *columns: np.ndarray) -> None:
        """Write rows' values, an array (rows, ...) a column; rows beyond the last are left out, and none is marked yet.

        Raises OSError where the disk is full.
        """
        for file, values in zip(self.files, columns, strict=False):
            for row, value in zip(rows.tolist(), values, strict=True):
                if row < len(self.checksums):
                    write_at(file.fileno(), value.tobytes(), row * value.nbytes)

    def mark(self, rows: np.ndarray) -> None:
        """Mark rows that were written as there, once all that was written is on the disk."""
        *columns, checksums = (file.fileno() for file in self.files)
        for column in columns:
            sync_data(column)
        for row in rows[rows < len(self.checksums)].tolist():
            checksum = np.uint32(self._checksum(row)).tobytes()
            write_at(checksums, checksum, row * CHECKSUM_BYTES)

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
    sizes = {folder / column.name: rows * column.nbytes for column in columns} | {folder / CHECKSUMS: rows * CHECKSUM_BYTES}
    make_private(root)
    # Nobody makes or removes a cache between the opening of its first file and of its last. Where nothing may be written,
    # what is there can be read.
    with locked(root) if os.access(root, os.W_OK) else nullcontext():
        if most_bytes is not None:
            _remove_oldest(root, folder, most_bytes - sum(sizes.values()))
        if not all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()):
            shutil.rmtree(folder, ignore_errors=True)
            make_private(folder)
            for file, size in sizes.items():
                with create(file) as opened:
                    (extend if most_bytes is None else reserve)(opened.fileno(), size)
        if os.access(folder, os.W_OK):
            os.utime(folder)
        files = tuple(FileIO(str(file), "r+" if os.access(file, os.W_OK) else "r") for file in sizes)
    shapes = [*((rows, *column.shape) for column in columns), (rows,)]
    types = [*(column.dtype for column in columns), np.dtype(np.uint32)]
    *values, checksums = (_mapped(*each) for each in zip(files, types, shapes, strict=True))
    cache = RowCache(folder, tuple(values), checksums, files, np.zeros(rows, bool))
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
