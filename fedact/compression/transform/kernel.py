"""The loops over coefficients, compiled by numba (extra ``fast``): the same values and bytes as numpy's way, bit for bit.

Nothing but ``fast.kernel`` imports this module: importing it compiles it, or loads what numba keeps from the last time.
Levels, ranks and blocks are those of order.py; positions are of a map, rows are (example, position).
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

Loop = TypeVar("Loop", bound=Callable[..., object])
Ints, Longs, Bytes = NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]
Floats, Doubles = NDArray[np.float32], NDArray[np.float64]
LEVELS = 16
"""Of rows, of channels; and classes."""


def compiled(signature: str) -> Callable[[Loop], Loop]:
    """Return the decorator that compiles a loop for these types; no operation is reordered or fused."""
    decorator: Callable[[Loop], Loop] = numba.njit(signature, cache=True, nogil=True, error_model="numpy")
    return decorator


inner: Callable[[Loop], Loop] = numba.njit(cache=True, nogil=True, error_model="numpy")
"""What is compiled into the loops that call it."""


@inner
def _sorted(levels: Bytes, times: int) -> tuple[Ints, Ints]:
    """Return so many copies of these levels sorted, and where a level starts, and the end."""
    firsts = np.zeros(LEVELS + 1, dtype=np.int32)
    for level in levels:
        firsts[level + 1] += times
    for level in range(LEVELS):
        firsts[level + 1] += firsts[level]
    order, nexts = np.empty(times * len(levels), dtype=np.int32), firsts.copy()
    for copy in range(times):
        for number in range(len(levels)):
            order[nexts[levels[number]]] = copy * len(levels) + number
            nexts[levels[number]] += 1
    return order, firsts


@inner
def _starts(row_firsts: Ints, channel_firsts: Ints, blocks: Longs) -> Ints:
    """Return where blocks start, and the end, of where levels do."""
    starts = np.zeros(len(blocks) + 1, dtype=np.int32)
    for number in range(len(blocks)):
        row, channel = blocks[number] // LEVELS, blocks[number] % LEVELS
        size = (row_firsts[row + 1] - row_firsts[row]) * (channel_firsts[channel + 1] - channel_firsts[channel])
        starts[number + 1] = starts[number] + size
    return starts


@inner
def _low(bits: int) -> int:
    """Return so many ones."""
    return (np.uint64(1) << bits) - np.uint64(1)


@inner
def _flushed(body: Bytes, place: int, word: int, held: int) -> tuple[int, int, int]:
    """Write the whole bytes of a word of so many bits; return the next byte's place, what is left and its bits."""
    while held >= np.uint64(8):
        body[place] = np.uint8(word & np.uint64(255))
        word >>= np.uint64(8)
        held -= np.uint64(8)
        place += 1
    return place, word, held


@inner
def _filled(packed: Bytes, place: int, word: int, held: int, wanted: int) -> tuple[int, int, int]:
    """Read bytes above a word's bits until it has as many as are wanted; return the next byte's place, word and bits."""
    while held < wanted:
        word |= np.uint64(packed[place]) << held
        held += np.uint64(8)
        place += 1
    return place, word, held


@compiled("void(float32[::1], float32, boolean[::1])")
def mark_above(values: Floats, threshold: np.float32, mask: NDArray[np.bool_]) -> None:
    """Write whether each magnitude is above a threshold."""
    for place in range(len(values)):
        mask[place] = abs(values[place]) > threshold


@compiled("void(float32[::1], boolean[::1], uint64[:, ::1], int32[::1], float32[::1])")
def take_marked(values: Floats, mask: NDArray[np.bool_], words: NDArray[np.uint64], places: Ints, marked: Floats) -> None:
    """Write the places and the values that are marked; words: the mask, 32 at a time, without what is left over."""
    count = 0
    for group in range(len(words)):
        if words[group, 0] | words[group, 1] | words[group, 2] | words[group, 3]:
            for word in range(4):
                if words[group, word]:
                    first = 32 * group + 8 * word
                    # Written first and counted then: no branch that hangs on the values.
                    for place in range(first, first + 8):
                        if count < len(places):
                            places[count], marked[count] = place, values[place]
                            count += mask[place]
    for place in range(32 * len(words), len(values)):
        if mask[place]:
            places[count], marked[count] = place, values[place]
            count += 1


@compiled("void(int32[::1], float32[::1], float64[::1], float64[::1])")
def add_magnitudes(places: Ints, values: Floats, of_channels: Doubles, of_rows: Doubles) -> None:
    """Add the magnitudes up by channel and by row; places: sorted."""
    channels = len(of_channels)
    row, begin = 0, 0
    for number in range(len(places)):
        while places[number] >= begin + channels:
            row, begin = row + 1, begin + channels
        magnitude = np.float64(abs(values[number]))
        of_channels[places[number] - begin] += magnitude
        of_rows[row] += magnitude


@compiled("void(int32[::1], float32[::1], uint8[::1], uint8[::1], int64, int64[::1], int32[::1], int32[::1], float32[::1])")
def sort(
    places: Ints, values: Floats, position_levels: Bytes, channel_levels: Bytes, batch: int, blocks: Longs,
    starts: Ints, sorted_places: Ints, sorted_values: Floats
) -> None:  # fmt: skip
    """Write where blocks start, and the places in the order with the values, sorted; places: (row, channel), sorted."""
    channels = len(channel_levels)
    start_of = np.empty(len(blocks), dtype=np.int32)
    starts[:] = _starts(_sorted(position_levels, batch)[1], _sorted(channel_levels, 1)[1], blocks)
    start_of[blocks] = starts[:-1]
    channel_ranks, widths = np.empty(channels, dtype=np.int32), np.zeros(LEVELS, dtype=np.int32)
    for channel in range(channels):
        channel_ranks[channel] = widths[channel_levels[channel]]
        widths[channel_levels[channel]] += 1
    found, block_of = np.empty_like(places), np.empty(len(places), dtype=np.uint8)
    counts = np.zeros(len(blocks), dtype=np.int32)
    ranks, position, begin = np.zeros(LEVELS, dtype=np.int32), 0, 0
    for number in range(len(places)):
        while places[number] >= begin + channels:
            ranks[position_levels[position]] += 1
            position = (position + 1) % len(position_levels)
            begin += channels
        channel, level = places[number] - begin, position_levels[position]
        block = level * LEVELS + channel_levels[channel]
        found[number] = start_of[block] + ranks[level] * widths[channel_levels[channel]] + channel_ranks[channel]
        block_of[number] = block
        counts[block] += 1
    first = 0
    for block in blocks:
        first, counts[block] = first + counts[block], first
    for number in range(len(places)):
        target = counts[block_of[number]]
        counts[block_of[number]] += 1
        sorted_places[target], sorted_values[target] = found[number], values[number]


@compiled("void(int32[::1], int32[::1], int32[::1], int32[::1], uint8[::1], int64[::1], uint8[::1])")
def write(means: Ints, gaps: Ints, sizes: Ints, quotients: Ints, table: Bytes, counts: Longs, body: Bytes) -> None:
    """Write quotients in unary, then remainders as fields, into bytes that are zero (rice.py)."""
    bit = 0
    for quotient in quotients:
        bit += quotient
        body[bit >> 3] |= np.uint8(1 << (bit & 7))
        bit += 1
    place, word, held = (bit + 7) >> 3, np.uint64(0), np.uint64(0)
    of_means = np.uint64(table[-1])
    for mean in means:
        word |= (np.uint64(mean) & _low(of_means)) << held
        place, word, held = _flushed(body, place, word, held + of_means)
    first = 0
    for one in range(LEVELS):
        of_gaps, of_sizes = np.uint64(table[one] & 15), np.uint64((table[one] >> 4) + 1)
        gap_bits, size_bits = _low(of_gaps), _low(of_sizes)
        for nonzero in range(first, first + counts[one]):
            field = (np.uint64(sizes[nonzero]) & size_bits) << of_gaps | (np.uint64(gaps[nonzero]) & gap_bits)
            word |= field << held
            place, word, held = _flushed(body, place, word, held + of_gaps + of_sizes)
        first += counts[one]
    if held:
        body[place] = np.uint8(word)


@compiled("void(uint8[::1], uint8[::1], int32[::1], int64, int32[::1])")
def read_fields(packed: Bytes, table: Bytes, counts: Ints, channels: int, numbers: Ints) -> None:
    """Put the remainders of means, gaps and sizes under their quotients."""
    place, word, held = 0, np.uint64(0), np.uint64(0)
    of_means = np.uint64(table[-1])
    for channel in range(channels):
        place, word, held = _filled(packed, place, word, held, of_means)
        numbers[channel] = np.int32(numbers[channel] << np.int32(of_means)) | np.int32(word & _low(of_means))
        word >>= of_means
        held -= of_means
    first, nonzeros = channels, (len(numbers) - channels) // 2
    for one in range(LEVELS):
        of_gaps, of_sizes = np.uint64(table[one] & 15), np.uint64((table[one] >> 4) + 1)
        gap_bits, size_bits = _low(of_gaps), _low(of_sizes)
        for number in range(first, first + counts[one]):
            place, word, held = _filled(packed, place, word, held, of_gaps + of_sizes)
            gap, size = word & gap_bits, word >> of_gaps & size_bits
            numbers[number] = np.int32(numbers[number] << np.int32(of_gaps)) | np.int32(gap)
            numbers[nonzeros + number] = np.int32(numbers[nonzeros + number] << np.int32(of_sizes)) | np.int32(size)
            word >>= of_gaps + of_sizes
            held -= of_gaps + of_sizes
        first += counts[one]


@compiled(
    "void(int32[::1], int32[::1], int32[::1], float32, uint8[::1], uint8[::1], int64, int64[::1],"
    " float32[::1], int32[::1], int32[::1])"
)
def place(
    gaps: Ints, sizes: Ints, counts: Ints, step: np.float32, position_levels: Bytes, channel_levels: Bytes, batch: int,
    blocks: Longs, values: Floats, rows: Ints, channels: Ints
) -> None:  # fmt: skip
    """Write the values, rows and channels of nonzeros with these gaps and sizes."""
    row_order, row_firsts = _sorted(position_levels, batch)
    channel_order, channel_firsts = _sorted(channel_levels, 1)
    starts = _starts(row_firsts, channel_firsts, blocks)
    number, first_block = 0, 0
    for one in range(LEVELS):
        while (
            first_block < len(blocks) - 1
            and min(blocks[first_block] // LEVELS + blocks[first_block] % LEVELS, LEVELS - 1) < one
        ):
            first_block += 1
        # Each class begins where its first block does, not where the one before it ends.
        block, here = first_block - 1, starts[first_block] - 1
        row_first, channel_first, width, rank, begin, end = 0, 0, 0, 0, 0, starts[first_block]
        for _ in range(counts[one]):
            here += gaps[number] + 1
            if here >= end:
                while here >= starts[block + 1]:
                    block += 1
                row_first, channel_first = row_firsts[blocks[block] // LEVELS], channel_firsts[blocks[block] % LEVELS]
                width = channel_firsts[blocks[block] % LEVELS + 1] - channel_first
                rank, begin, end = 0, starts[block], starts[block + 1]
            if here >= begin + width:
                more = (here - begin) // width
                rank += more
                begin += more * width
            rows[number] = row_order[row_first + rank]
            channels[number] = channel_order[channel_first + here - begin]
            size = sizes[number]
            values[number] = np.float32(((size >> 1) + 1) * (1 - 2 * (size & 1))) * step
            number += 1
