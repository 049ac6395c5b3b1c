"""Whole numbers in Rice's code: every symbol is written, and read back, at once."""

from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from fedact.compression.packing import unpack_codes

MOST_REMAINDER_BITS = 15
"""Of a symbol; with up to 7 bits before it in its first byte a remainder lies in three bytes."""


SLICE = 2**14
"""Symbols written at a time: what they need on the way stays small, however many there are."""


class Coded(NamedTuple):
    """Symbols as bits: all quotients in unary, each ended by a one, and after them all remainders."""

    unary: UInt8[Tensor, " bytes"]
    remainders: UInt8[Tensor, " bytes"]


def best_parameter(mean: Tensor) -> UInt8[Tensor, "*shape"]:
    """Return Golomb's choice for symbols whose mean is given: as many remainder bits as cost the least in all."""
    # For a geometric distribution the best divisor is about mean x ln 2.
    bits = ((mean + 0.5) * 0.69315).clamp_min(1).log2().round()
    return bits.clamp(0, MOST_REMAINDER_BITS).to(torch.uint8)


def coded_bits(symbols: Int[Tensor, " n"], parameters: UInt8[Tensor, " n"]) -> tuple[int, int]:
    """Return the bits of the quotients and of the remainders."""
    return int((symbols >> parameters).sum()) + len(symbols), int(parameters.sum())


def coded_bytes(bits: tuple[int, int]) -> int:
    """Return the bytes of so many bits of quotients and of remainders."""
    return sum(ceil(count / 8) for count in bits)


def encode(symbols: Int[Tensor, " n"], parameters: UInt8[Tensor, " n"], bits: tuple[int, int]) -> Coded:
    """Write symbols from 0, each with its own number of remainder bits (0 to 15), in so many bits (``coded_bits``)."""
    # Three bytes more: a remainder's window may begin at the very end and reach over it, where its bits are zero.
    unary, remainders = (symbols.new_zeros(ceil(count / 8) + 3, dtype=torch.uint8) for count in bits)
    written = [0, 0]
    for start in range(0, len(symbols), SLICE):
        part, wide = symbols[start : start + SLICE], parameters[start : start + SLICE].to(torch.int32)
        lengths = ((part >> wide) + 1).cumsum(0, dtype=torch.int32)
        ends = lengths + (written[0] - 1)
        # No two bits meet, so that adding them up carries nothing.
        unary.index_add_(0, ends >> 3, (1 << (ends & 7)).to(torch.uint8))
        filled = wide.cumsum(0, dtype=torch.int32)
        places = filled - wide + written[1]
        window = (part & ((1 << wide) - 1)) << (places & 7)
        for byte in range(3):
            remainders.index_add_(0, (places >> 3) + byte, (window >> 8 * byte).to(torch.uint8))
        written[0] += int(lengths[-1])
        written[1] += int(filled[-1])
    return Coded(unary[:-3], remainders[:-3])


def decode(coded: Coded, parameters: UInt8[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the symbols behind ``encode``, of which there are as many as parameters."""
    wide = parameters.to(torch.int32)
    ends = unpack_codes(coded.unary, 1, 8 * len(coded.unary)).nonzero().flatten().to(torch.int32)
    symbols = (ends.diff(prepend=ends.new_full((1,), -1)) - 1) << wide
    places = wide.cumsum(0, dtype=torch.int32) - wide
    padded = torch.cat([coded.remainders, coded.remainders.new_zeros(3)]).to(torch.int32)
    first = places >> 3
    window = padded.index_select(0, first)
    for byte in (1, 2):
        window |= padded.index_select(0, first + byte) << 8 * byte
    return symbols | (window >> (places & 7)) & ((1 << wide) - 1)
