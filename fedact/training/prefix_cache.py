"""A disk cache of frozen-prefix outputs, of limited size, shared by rounds, methods, clients and runs."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedact.data import Images, in_blocks
from fedact.nn.prefix.outputs import Layout, Positions
from fedact.storage.row_cache import CHECKSUM_BYTES, Column, RowCache, open_rows

Make = Callable[[Positions], Iterable[tuple[Positions, list[Tensor]]]]
"""Computes the outputs of some examples, a few at a time: yields (positions, a tensor a layout)."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """The cached outputs of one frozen prefix by example, in the types and orders of the layouts."""

    layouts: tuple[Layout, ...]
    rows: RowCache

    def fill(self, positions: Positions, make: Make) -> None:
        """Let the outputs for these examples be there, as far as the cache has room: ``make`` computes all missing ones."""
        with_room = positions[positions < len(self.rows.checksums)]
        missing = with_room[~self.rows.has(with_room)]
        if len(missing):
            for chosen, values in make(missing):
                self.rows.write(chosen, *(value.cpu().numpy() for value in values))
            self.rows.mark(missing)

    def get(self, positions: Positions, make: Make) -> list[Tensor]:
        """Return the outputs for these examples, a tensor (examples, ...) a layout.

        Missing ones are computed by ``make``, and written to the cache where it has room.
        """
        outputs = [torch.empty((len(positions), *layout.shape), dtype=layout.dtype) for layout in self.layouts]
        known = self.rows.has(positions)
        for output, column in zip(outputs, self.rows.values, strict=True):
            output[torch.from_numpy(known)] = torch.from_numpy(column[positions[known]])
        if known.all():
            return outputs
        missing = np.flatnonzero(~known)
        done = 0
        for chosen, values in make(positions[missing]):
            places = torch.from_numpy(missing[done : done + len(chosen)])
            done += len(chosen)
            for output, new in zip(outputs, values, strict=True):
                output[places] = new.cpu()
            self.rows.write(chosen, *(new.cpu().numpy() for new in values))
        self.rows.mark(positions[missing])
        return outputs


def open_cache(folder: Path, key: str, layouts: Sequence[Layout], examples: int, most_bytes: int) -> PrefixCache:
    """Return the cache of one frozen prefix and data set; the least recently opened others are removed to make room for it.

    key: a fingerprint of all that the outputs depend on. most_bytes: of the folder; where all examples would take more, the
    cache has room for the first ones. Raises OSError where the disk is full, or the folder is read-only.
    """
    room = min(examples, most_bytes // (sum(layout.nbytes for layout in layouts) + CHECKSUM_BYTES))
    name = hashlib.sha256(f"{key} {room} {layouts}".encode()).hexdigest()[:24]
    columns = [
        Column(f"value-{place}", np.dtype(_NUMPY[layout.dtype]), tuple(layout.shape)) for place, layout in enumerate(layouts)
    ]
    return PrefixCache(tuple(layouts), open_rows(folder, name, columns, room, most_bytes))


def is_storable(layouts: Sequence[Layout]) -> bool:
    """Tell whether the cache can store outputs of all these layouts' types."""
    return all(layout.dtype in _NUMPY for layout in layouts)


def fingerprint(*parts: str | bytes | Images | Tensor) -> str:
    """Return a hexadecimal digest of texts, bytes, images and tensors, their types and shapes included."""
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
