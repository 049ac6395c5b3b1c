"""Values that many workers need: their arrays lie in one file, which each maps into its memory instead of copying it."""

import mmap
import secrets
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedact.config.paths import cache_folder
from fedact.processes.transfer import pack, unpack
from fedact.storage.locks import LOCK_FILE, is_locked, locked
from fedact.storage.system import create, make_private

ALIGNMENT = 64
"""Bytes at whose multiples arrays begin, as torch's own do."""


@dataclass(frozen=True, eq=False)
class Shared:
    """A value, here or in a file; such that it can be sent to workers.

    kept: the value itself where there are no other processes. Else head is the value without its arrays, and places are
    where these begin and end in the file.
    """

    kept: Any = None
    head: bytes = b""
    file: Path | None = None
    places: tuple[tuple[int, int], ...] = ()

    def open(self) -> Any:
        """Return the value; its arrays are of the file's bytes, and what this process changes in them no other one sees."""
        if self.file is None:
            return self.kept
        with self.file.open("rb") as opened:
            content = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
        return unpack(self.head, [content[start:end] for start, end in self.places])

    def read(self) -> Any:
        """Return the value, for one that will not last: its arrays are copies, and the file may be removed after."""
        if self.file is None:
            return self.kept
        with self.file.open("rb") as opened:
            content = memoryview(bytearray(opened.read()))
        return unpack(self.head, [content[start:end] for start, end in self.places])


@dataclass(eq=False)
class SharedFolder(AbstractContextManager["SharedFolder"]):
    """A folder of files of shared values, made when the first is written and removed at the end.

    What a process left that was killed is removed by the next one.

    root: where such folders lie, by default the cache's ``shared``.
    """

    root: Path | None = None
    _made: Path | None = field(default=None, init=False)
    _lock: FileLock | None = field(default=None, init=False)

    def share(self, value: Any) -> Shared:
        """Return a value whose arrays are in a new file; raises OSError where there is no room for it."""
        buffers: list[memoryview] = []
        head = pack(value, lambda buffer: buffers.append(buffer.raw()))
        file, places, end = self.folder() / secrets.token_hex(8), [], 0
        with create(file) as opened:
            for buffer in buffers:
                opened.write(bytes(-end % ALIGNMENT))
                start = end + -end % ALIGNMENT
                end = start + buffer.nbytes
                opened.write(buffer)
                places.append((start, end))
            # No empty file can be mapped.
            opened.write(b"\0")
        return Shared(head=head, file=file, places=tuple(places))

    def remove(self, shared: Shared) -> None:
        """Remove the file of a value that nobody will open or read any more."""
        if shared.file is not None:
            # Windows removes no file that another process has open; it goes with the folder.
            with suppress(OSError):
                shared.file.unlink()

    def __exit__(self, *_: object) -> None:
        """Remove the folder; under Windows nobody may have its files open any more."""
        if self._made is not None and self._lock is not None:
            self._lock.release()
            shutil.rmtree(self._made, ignore_errors=True)

    def folder(self) -> Path:
        """Return the folder, made where it is not there yet; raises OSError where it cannot be."""
        if self._made is None:
            make_private(root := self.root or cache_folder() / "shared")
            with locked(root):
                for folder in [path for path in root.iterdir() if path.is_dir() and not is_locked(path)]:
                    shutil.rmtree(folder, ignore_errors=True)
                self._made = root / secrets.token_hex(8)
                make_private(self._made)
                self._lock = FileLock(self._made / LOCK_FILE)
                # Where there are no locks, nobody removes another's folder either.
                with suppress(OSError, NotImplementedError):
                    self._lock.acquire(timeout=0)
        return self._made
