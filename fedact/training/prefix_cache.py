"""What a frozen part made of examples, kept on disk between rounds, methods, clients and runs, up to a number of bytes."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedact.data import Images, in_blocks
from fedact.nn.prefix.outputs import Layout, Positions

Make = Callable[[Positions], Iterable[tuple[Positions, list[Tensor]]]]
"""Makes the values of some examples, a few at a time."""

_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
}


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """One frozen part's values, by example: memory-mapped files, and a byte for each example that says whether it is there.

    A value is written before its byte, so that whenever the process stops, what is said to be there is there.
    """

    layouts: tuple[Layout, ...]
    values: tuple[np.ndarray, ...]
    there: np.ndarray

    def get(self, positions: Positions, make: Make) -> list[Tensor]:
        """Return the values of these examples; those that are not there are made, and kept while there is room."""
        rows = [torch.empty((len(positions), *layout.shape), dtype=layout.dtype) for layout in self.layouts]
        inside = positions < len(self.there)
        known = inside.copy()
        known[inside] = self.there[positions[inside]] == 1
        for row, value in zip(rows, self.values, strict=True):
            row[torch.from_numpy(known)] = torch.from_numpy(value[positions[known]])
        missing = np.flatnonzero(~known)
        done = 0
        for chosen, made in make(positions[missing]):
            places = torch.from_numpy(missing[done : done + len(chosen)])
            done += len(chosen)
            for row, new in zip(rows, made, strict=True):
                row[places] = new.cpu()
            self._keep(chosen, made)
        if len(missing):
            self._say_they_are_there(positions[missing])
        return rows

    def _keep(self, positions: Positions, made: Sequence[Tensor]) -> None:
        room = positions < len(self.there)
        for kept, value in zip(self.values, made, strict=True):
            kept[positions[room]] = value.cpu().numpy()[room]

    def _say_they_are_there(self, positions: Positions) -> None:
        for kept in self.values:
            if isinstance(kept, np.memmap):
                kept.flush()
        self.there[positions[positions < len(self.there)]] = 1


def open_cache(folder: Path, key: str, layouts: Sequence[Layout], examples: int, most_bytes: int) -> PrefixCache:
    """Return the cache of one frozen part and data set; the oldest others make room for it.

    It has room for the first examples where all are more than the bytes. key: says all that the values follow from.
    Raises OSError where the disk has no room, or nothing may be written.
    """
    each = sum(layout.nbytes for layout in layouts) + 1
    room = min(examples, most_bytes // each)
    own = folder / hashlib.sha256(f"{key} {room} {layouts}".encode()).hexdigest()[:24]
    _make_room(folder, own, most_bytes - room * each)
    files = {own / f"value-{place}": (room * layout.nbytes) for place, layout in enumerate(layouts)}
    files[own / "there"] = room
    if not all(file.is_file() and file.stat().st_size == size for file, size in files.items()):
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        for file, size in files.items():
            _reserve(file, size)
    os.utime(own)
    *values, there = files
    kinds = [(_NUMPY[layout.dtype], (room, *layout.shape)) for layout in layouts]
    mapped = tuple(_mapped(file, kind, shape) for file, (kind, shape) in zip(values, kinds, strict=True))
    return PrefixCache(tuple(layouts), mapped, _mapped(there, np.uint8, (room,)))


def can_keep(layouts: Sequence[Layout]) -> bool:
    """Tell whether all of these can lie in a file."""
    return all(layout.dtype in _NUMPY for layout in layouts)


def _reserve(file: Path, size: int) -> None:
    """Make a file of so many zeros; raises OSError where the disk has no room for it."""
    with file.open("wb") as handle:
        if size:
            # A page that finds no room on disk when it is written to would kill the process.
            os.posix_fallocate(handle.fileno(), 0, size)


def _mapped(file: Path, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(file, kind, "r+", shape=shape) if np.prod(shape) else np.zeros(shape, kind)


def _make_room(folder: Path, own: Path, others_bytes: int) -> None:
    """Remove the caches that were opened longest ago, until the others take no more than so many bytes."""
    others = [each for each in folder.glob("*") if each != own and each.is_dir()]
    sizes = {each: sum(file.stat().st_size for file in each.iterdir()) for each in others}
    for each in sorted(others, key=lambda each: each.stat().st_mtime):
        if sum(sizes.values()) <= others_bytes:
            break
        shutil.rmtree(each, ignore_errors=True)
        del sizes[each]


def fingerprint(*parts: str | bytes | Images | Tensor) -> str:
    """Return what tells these apart from any others."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str | bytes):
            text = part.encode() if isinstance(part, str) else part
            digest.update(len(text).to_bytes(8, "little") + text)
        else:
            array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
            digest.update(f"{array.dtype} {array.shape} ".encode())
            for block in in_blocks(array if array.shape else np.asarray(array)[None]):
                digest.update(block.tobytes())
    return digest.hexdigest()
