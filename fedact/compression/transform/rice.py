"""Whole numbers in Rice's code: quotients in unary, remainders as fields of bits, each kind written and read at once."""

import numpy as np
from jaxtyping import Float, Int, UInt8

MOST_REMAINDER_BITS = 15
"""Of a number; a field holds two remainders and a sign at most."""


def best_parameter(mean: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return Golomb's choice for numbers whose mean is given: as many remainder bits as cost the least in all."""
    # For a geometric distribution the best divisor is about mean x ln 2.
    bits = np.rint(np.log2(np.maximum((mean + 0.5) * 0.69315, 1)))
    return np.minimum(bits, MOST_REMAINDER_BITS).astype(np.uint8)


def write_unary(numbers: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, " bytes"]:
    """Write numbers from 0, each as so many zeros and a one."""
    ends = numbers.cumsum(dtype=np.int32)
    ends += np.arange(len(ends), dtype=np.int32)
    ones = np.zeros(ends[-1] + 1 if len(ends) else 0, dtype=np.uint8)
    ones[ends] = 1
    return np.packbits(ones, bitorder="little")


def read_unary(packed: UInt8[np.ndarray, " bytes"]) -> Int[np.ndarray, " n"]:
    """Return the numbers behind ``write_unary``."""
    ends = np.unpackbits(packed, bitorder="little").view(np.bool_).nonzero()[0].astype(np.int32)
    ends[1:] -= ends[:-1] + 1
    return ends


def write_fields(fields: Int[np.ndarray, " n"], widths: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, " bytes"]:
    """Write numbers from 0 side by side, each in its own number of bits (0 to 31)."""
    begins = widths.cumsum(dtype=np.int32)
    bits = int(begins[-1]) if len(begins) else 0
    begins -= widths
    # A field lies in a word of 32 bits and the next one; no two meet, so that adding them up carries nothing.
    words = np.zeros(bits // 32 + 2, dtype=np.int64)
    places = begins >> 5
    begins &= 31
    if bits:
        changes = np.ones(len(places), dtype=np.bool_)
        np.not_equal(places[1:], places[:-1], out=changes[1:])
        (firsts,) = changes.nonzero()
        shifted = fields.astype(np.int64)
        shifted <<= begins
        words[places[firsts]] = np.add.reduceat(shifted, firsts)
    words[1:] += words[:-1] >> 32
    return words.astype(np.uint32).view(np.uint8)[: -(-bits // 8)]


def read_fields(packed: UInt8[np.ndarray, " bytes"], widths: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the fields behind ``write_fields``, of which there are as many as widths."""
    halves = np.zeros(len(packed) // 4 + 3, dtype=np.uint32)
    halves.view(np.uint8)[: len(packed)] = packed
    words = halves[1:].astype(np.int64)
    words <<= 32
    words |= halves[:-1]
    begins = widths.cumsum(dtype=np.int32)
    begins -= widths
    fields = words[begins >> 5]
    begins &= 31
    fields >>= begins
    fields &= (np.int64(1) << widths) - 1
    result: Int[np.ndarray, " n"] = fields.astype(np.int32)
    return result
