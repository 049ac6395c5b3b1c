"""What a frozen part made of examples, kept on disk between rounds, methods, clients and runs, up to a number of bytes."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedact.crossing import Layout, Positions

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
        return rows

    def _keep(self, positions: Positions, made: Sequence[Tensor]) -> None:
        room = positions < len(self.there)
        for kept, value in zip(self.values, made, strict=True):
            kept[positions[room]] = value.cpu().numpy()[room]
            kept.flush()  # type: ignore[attr-defined]
        self.there[positions[room]] = 1


def open_cache(folder: Path, key: str, layouts: Sequence[Layout], examples: int, most_bytes: int) -> PrefixCache:
    """Return the cache of one frozen part and data set; the oldest others make room for it.

    It has room for the first examples where all are more than the bytes. key: says all that the values follow from.
    """
    each = sum(layout.nbytes for layout in layouts) + 1
    room = min(examples, most_bytes // each)
    own = folder / hashlib.sha256(f"{key} {room} {layouts}".encode()).hexdigest()[:24]
    _make_room(folder, own, most_bytes - room * each)
    own.mkdir(parents=True, exist_ok=True)
    os.utime(own)
    values = tuple(
        _mapped(own / f"value-{place}", (room, *layout.shape), _NUMPY[layout.dtype]) for place, layout in enumerate(layouts)
    )
    return PrefixCache(tuple(layouts), values, _mapped(own / "there", (room,), np.uint8))


def _mapped(file: Path, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """Return a file as an array; a new one is all zeros, and takes no room on disk until it is written to."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    if not size:
        return np.zeros(shape, kind)
    with file.open("ab") as handle:
        if handle.tell() != size:
            handle.truncate(size)
    return np.memmap(file, kind, "r+", shape=shape)


def _make_room(folder: Path, own: Path, others_bytes: int) -> None:
    """Remove the caches that were opened longest ago, until the others take no more than so many bytes."""
    others = sorted(
        (each for each in folder.glob("*") if each != own and each.is_dir()), key=lambda each: each.stat().st_mtime
    )
    sizes = {each: sum(file.stat().st_size for file in each.iterdir()) for each in others}
    for each in sorted(others, key=lambda each: each.stat().st_mtime):
        if sum(sizes.values()) <= others_bytes:
            break
        shutil.rmtree(each, ignore_errors=True)
        del sizes[each]


def fingerprint(*parts: str | bytes | np.ndarray | Tensor) -> str:
    """Return what tells these apart from any others."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _bytes_of(parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _bytes_of(parts: Iterable[str | bytes | np.ndarray | Tensor]) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, str):
            yield part.encode()
        elif isinstance(part, bytes):
            yield part
        else:
            array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
            yield f"{array.dtype} {array.shape}".encode()
            yield np.ascontiguousarray(array).tobytes()
