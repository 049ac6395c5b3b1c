"""What is large of a worker's answers: it lies in one file of the worker's, where a pipe would take it piece by piece."""

import mmap
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedact.processes.transfer import pack, unpack
from fedact.storage.system import create, reserve

FEWEST_BYTES = 65_536
"""Less goes with the rest, through the pipe."""
STEP_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Packed:
    """A value as bytes; head: without its large parts. file, sizes: where these lie, one after another; parts: or they."""

    head: bytes
    file: str = ""
    sizes: tuple[int, ...] = ()
    parts: tuple[bytearray, ...] = ()


@dataclass(eq=False)
class Tray:
    """A worker's file for one answer at a time; it grows to the largest one.

    folder: where it lies, whose owner removes it; None where everything goes through the pipe.
    """

    folder: Path | None
    _file: str = field(default="", init=False)
    _content: mmap.mmap | None = field(default=None, init=False)

    def pack(self, value: Any) -> Packed:
        """Return a value such that ``TrayReader.unpack`` finds it; what the last call wrote is gone."""
        buffers: list[memoryview] = []
        head = pack(value, lambda buffer: buffers.append(buffer.raw()))
        sizes = tuple(buffer.nbytes for buffer in buffers)
        if sum(sizes) < FEWEST_BYTES or (content := self._room(sum(sizes))) is None:
            return Packed(head, parts=tuple(map(bytearray, buffers)))
        end = 0
        for size, buffer in zip(sizes, buffers, strict=True):
            content[end : end + size] = buffer
            end += size
        return Packed(head, self._file, sizes)

    def _room(self, size: int) -> mmap.mmap | None:
        """Return the mapped file with room for so many bytes, None where the disk has none."""
        if self.folder is not None and (self._content is None or len(self._content) < size):
            file = self.folder / secrets.token_hex(8)
            # Its room is taken at once: a system ends a process that writes to mapped bytes without any.
            with suppress(OSError), create(file) as opened:
                reserve(opened.fileno(), -(-size // STEP_BYTES) * STEP_BYTES)
                opened.flush()
                with file.open("r+b") as writable:
                    self._content, self._file = mmap.mmap(writable.fileno(), 0), str(file)
        return self._content if self._content is not None and len(self._content) >= size else None


@dataclass(eq=False)
class TrayReader:
    """Reads what a worker's tray holds, before the worker is called again."""

    _file: str = field(default="", init=False)
    _content: mmap.mmap | None = field(default=None, init=False)

    def unpack(self, packed: Packed) -> Any:
        """Return the value; its arrays are its own, and may be changed."""
        return unpack(packed.head, self._parts(packed.file, packed.sizes) if packed.file else packed.parts)

    def _parts(self, file: str, sizes: Sequence[int]) -> list[bytearray]:
        if file != self._file or self._content is None:
            self.close()
            with Path(file).open("rb") as opened:
                self._content, self._file = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), file
        parts, end = list[bytearray](), 0
        with memoryview(self._content) as content:
            for size in sizes:
                with content[end : end + size] as part:
                    parts.append(bytearray(part))
                end += size
        return parts

    def close(self) -> None:
        """Give the file back; Windows removes none that is open."""
        if self._content is not None:
            self._content.close()
            self._content, self._file = None, ""
