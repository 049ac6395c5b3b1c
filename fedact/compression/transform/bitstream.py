"""Coded coefficients as bytes: a header, the levels of channels and rings, and the body."""

from math import ceil
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.coefficients import Levels, in_ledger, order_of
from fedact.compression.transform.fast import kernel
from fedact.compression.transform.order import BLOCKS, CLASSES, Order, rows_and_channels
from fedact.compression.transform.rice import read_fields, read_unary, write_fields, write_unary
from fedact.compression.transform.step_size import MEAN_STEPS, Symbols, from_zigzag, remainder_bits

DECODED_BYTES = 56
"""Of numpy's memory at most, for a coefficient that is read."""
COUNTS = 4 + 4
TABLE = COUNTS + 4 * CLASSES
HEADER = TABLE + CLASSES + 1 + 3
"""Step, bits of the quotients, nonzeros by class; remainder bits by class and of the means, filled up to 92 bytes."""


class Decoded(NamedTuple):
    """The nonzero coefficients, their rows (example, position) and channels, and the channels' means.

    entry: stands in the ledger for these arrays.
    """

    values: Float[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    channels: Int[np.ndarray, " n"]
    means: Float[np.ndarray, " channels"]
    entry: UInt8[Tensor, " bytes"]


def levels_end(channels: int, rings: int) -> int:
    """Return the bytes before the body: the header, and half a byte for every channel and ring."""
    return HEADER + ceil(channels / 2) + ceil(rings / 2)


def least_body(channels: int) -> int:
    """Return the bytes of the body of nothing but means of zero."""
    return ceil(channels / 8)


def nonzeros(packed: UInt8[np.ndarray, " bytes"]) -> int:
    """Return the number of nonzero coefficients."""
    return int(packed[COUNTS:TABLE].view(np.int32).sum())


def write(symbols: Symbols, levels: Levels, packed: UInt8[np.ndarray, " bytes"]) -> None:
    """Write header, levels and body into bytes that are zero; what is left over stays so."""
    packed[:4].view(np.float32)[0] = symbols.step
    packed[4:COUNTS].view(np.int32)[0] = symbols.bits[0]
    packed[COUNTS:TABLE].view(np.int32)[:] = symbols.counts
    packed[TABLE : TABLE + CLASSES + 1] = symbols.table
    place = HEADER
    if loops := kernel(len(symbols.gaps)):
        for part in map(_halves, levels):
            packed[place : place + len(part)] = part
            place += len(part)
        _, means, gaps, sizes, table, counts, quotients, *_ = symbols
        loops.write(means, gaps, sizes, quotients, table, counts, packed[place:])
        return
    for part in (*map(_halves, levels), write_unary(symbols.quotients), write_fields(*_fields(symbols))):
        packed[place : place + len(part)] = part
        place += len(part)


def _fields(symbols: Symbols) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the means' remainders, then of each nonzero the gap's and above it the size's; and how many bits each has."""
    bits = remainder_bits(symbols.table, symbols.counts)
    fields = symbols.sizes & ((1 << bits.of_sizes) - 1)
    fields <<= bits.of_gaps
    fields |= symbols.gaps & ((1 << bits.of_gaps) - 1)
    return np.concatenate([symbols.means & ((1 << bits.of_means) - 1), fields]), bits.widths(len(symbols.means))


def read(packed: UInt8[np.ndarray, " bytes"], batch: int, channels: int, rings: UInt8[np.ndarray, " positions"]) -> Decoded:
    """Return the coefficients and means that ``write`` wrote; rings: the group of every position."""
    entry, ring_count = in_ledger(DECODED_BYTES * nonzeros(packed)), int(rings.max()) + 1
    middle, body = HEADER + ceil(channels / 2), levels_end(channels, ring_count)
    step = float(packed[:4].view(np.float32)[0])
    counts, table = packed[COUNTS:TABLE].view(np.int32), packed[TABLE : TABLE + CLASSES + 1]
    levels = Levels(_whole(packed[HEADER:middle], channels), _whole(packed[middle:body], ring_count))
    first_field = body + ceil(int(packed[4:COUNTS].view(np.int32)[0]) / 8)
    count = int(counts.sum())
    if loops := kernel(count):
        numbers = read_unary(packed[body:first_field])
        loops.read_fields(packed[first_field:], table, counts, channels, numbers)
        values, places = np.empty(count, dtype=np.float32), np.empty((2, count), dtype=np.int32)
        gaps, sizes = numbers[channels : channels + count], numbers[channels + count :]
        by_levels = levels.of_rings[rings], levels.of_channels, batch, BLOCKS
        loops.place(gaps, sizes, counts, step, *by_levels, values, *places)
        return Decoded(values, places[0], places[1], from_zigzag(numbers[:channels], step / MEAN_STEPS), entry)
    by = order_of(levels, rings, batch)
    numbers, bits = read_unary(packed[body:first_field]), remainder_bits(table, counts)
    widths = bits.widths(channels)
    fields = read_fields(packed[first_field : first_field + ceil(int(widths.sum()) / 8)], widths)
    means, gaps, sizes = numbers[:channels], numbers[channels : -count or None], numbers[channels + count :]
    means = from_zigzag((means << bits.of_means) | fields[:channels], step / MEAN_STEPS)
    fields = fields[channels:]
    gaps <<= bits.of_gaps
    gaps |= fields & ((1 << bits.of_gaps) - 1)
    sizes <<= bits.of_sizes
    sizes |= fields >> bits.of_gaps
    values = (((sizes >> 1) + 1) * (1 - 2 * (sizes & 1))).astype(np.float32)
    values *= np.float32(step)
    return Decoded(values, *rows_and_channels(by, _places(gaps, counts, by)), means, entry)


def _places(gaps: Int[np.ndarray, " n"], counts: Int[np.ndarray, " classes"], by: Order) -> Int[np.ndarray, " n"]:
    """Return the places of nonzeros with so many zeros of their class before them."""
    gaps += 1
    # Each class begins where it does, not where the one before it ends.
    ends = np.concatenate([np.zeros(1, dtype=np.int32), gaps.cumsum(dtype=np.int32)])
    offsets = by.class_starts[:-1] - ends[counts.cumsum() - counts] - 1
    ends[1:] += np.repeat(offsets, counts)
    return ends[1:]


def _halves(levels: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, " bytes"]:
    """Return numbers below 16, two in a byte, the first in its lower half."""
    halves = np.zeros(ceil(len(levels) / 2), dtype=np.uint8)
    halves += levels[::2]
    halves[: len(levels) // 2] += levels[1::2] << 4
    return halves


def _whole(halves: UInt8[np.ndarray, " bytes"], count: int) -> UInt8[np.ndarray, " count"]:
    """Return the first numbers behind ``_halves``."""
    levels = np.empty(2 * len(halves), dtype=np.uint8)
    levels[::2], levels[1::2] = halves & 15, halves >> 4
    return levels[:count]
