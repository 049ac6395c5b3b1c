"""The order in which coefficients are coded: those of like size together."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

CLASSES = 16
"""Classes of coefficients, an octave each: as many as half a byte can tell apart."""
CLASS = np.add.outer(np.arange(CLASSES), np.arange(CLASSES)).clip(max=CLASSES - 1).ravel()
BLOCKS = CLASS.argsort(kind="stable")
"""Pairs of levels (of a row, of a channel) as 16 x the first + the second: the class of each, and all sorted by it."""
CLASS_STARTS = np.searchsorted(CLASS[BLOCKS], np.arange(CLASSES + 1))
Table = NDArray[np.int32]


class Axis(NamedTuple):
    """Rows (example, position) or channels: the level of each, all sorted by it, where a level starts, and its size."""

    levels: NDArray[np.uint8]
    sorted: Table
    firsts: Table
    sizes: Table

    def ranks(self) -> Table:
        """Return the rank of each among those of its level."""
        ranks = np.empty_like(self.sorted)
        ranks[self.sorted] = np.arange(len(ranks), dtype=np.int32)
        ranks -= self.firsts[self.levels]
        return ranks


class Order(NamedTuple):
    """An order of all coefficients (row, channel): class by class, in a class block by block, in a block row by row.

    A class is the sum of a row's and a channel's level; a block is what has the same two levels.
    starts: of the blocks, in the order of ``BLOCKS``, and the end.
    """

    rows: Axis
    channels: Axis
    starts: Table

    @property
    def class_starts(self) -> Table:
        """Where each class starts, and the end."""
        return self.starts[CLASS_STARTS]


def order(row_levels: UInt8[np.ndarray, " rows"], channel_levels: UInt8[np.ndarray, " channels"]) -> Order:
    """Return the order for levels from 0 to 15."""
    rows, channels = _axis(row_levels), _axis(channel_levels)
    starts = np.zeros(CLASSES * CLASSES + 1, dtype=np.int32)
    (rows.sizes[:, None] * channels.sizes).ravel()[BLOCKS].cumsum(out=starts[1:])
    return Order(rows, channels, starts)


def _axis(levels: UInt8[np.ndarray, " n"]) -> Axis:
    sizes = np.bincount(levels, minlength=CLASSES).astype(np.int32)
    return Axis(levels, levels.argsort(kind="stable").astype(np.int32), sizes.cumsum(dtype=np.int32) - sizes, sizes)


def places_in(by: Order, rows: Int[np.ndarray, " n"], channels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the places in the order of coefficients in these rows and channels."""
    starts = np.empty(CLASSES * CLASSES, dtype=np.int32)
    starts[BLOCKS] = by.starts[:-1]
    places: Table = by.rows.ranks()[rows]
    places *= by.channels.sizes[by.channels.levels][channels]
    places += by.channels.ranks()[channels]
    block = (by.rows.levels * np.int16(CLASSES))[rows]
    block += by.channels.levels[channels]
    places += starts[block]
    return places


def rows_and_channels(by: Order, places: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the rows and the channels of sorted places in the order."""
    firsts = places.searchsorted(by.starts)
    counts = firsts[1:] - firsts[:-1]
    (used,) = counts.nonzero()
    counts, (row_levels, channel_levels) = counts[used], np.divmod(BLOCKS[used], CLASSES)
    channels = places - np.repeat(by.starts[used], counts)
    widths = np.repeat(by.channels.sizes[channel_levels], counts)
    rows = channels // widths
    widths *= rows
    channels -= widths
    rows += np.repeat(by.rows.firsts[row_levels], counts)
    channels += np.repeat(by.channels.firsts[channel_levels], counts)
    return by.rows.sorted[rows], by.channels.sorted[channels]
