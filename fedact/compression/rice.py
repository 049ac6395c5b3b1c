"""Whole numbers in Rice's code: every symbol is written, and read back, at once."""

from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from fedact.compression.packing import unpack_codes

MOST_REMAINDER_BITS = 15
"""Of a symbol; with up to 7 bits before it in its first byte a remainder lies in three bytes."""


class Coded(NamedTuple):
    """Symbols as bits: all quotients in unary, each ended by a one, and after them all remainders."""

    unary: UInt8[Tensor, " bytes"]
    remainders: UInt8[Tensor, " bytes"]


def best_parameter(mean: Tensor) -> Tensor:
    """Return Golomb's choice for symbols whose mean is given: as many remainder bits as cost the least in all."""
    # For a geometric distribution the best divisor is about mean x ln 2.
    bits = ((mean + 0.5) * 0.69315).clamp_min(1).log2().round()
    return bits.clamp(0, MOST_REMAINDER_BITS).to(torch.int64)


def coded_bits(symbols: Int[Tensor, " n"], parameters: Int[Tensor, " n"]) -> tuple[int, int]:
    """Return the bits of the quotients and of the remainders."""
    return int((symbols >> parameters).sum()) + len(symbols), int(parameters.sum())


def coded_bytes(bits: tuple[int, int]) -> int:
    """Return the bytes of so many bits of quotients and of remainders."""
    return sum(ceil(each / 8) for each in bits)


def encode(symbols: Int[Tensor, " n"], parameters: Int[Tensor, " n"]) -> Coded:
    """Write symbols from 0, each with its own number of remainder bits (0 to 15)."""
    ends = ((symbols >> parameters) + 1).cumsum(0) - 1
    places = parameters.cumsum(0) - parameters
    bits = coded_bits(symbols, parameters)
    unary = _bytes(ends >> 3, 1 << (ends & 7), bits[0])
    shifted = (symbols & ((1 << parameters) - 1)) << (places & 7)
    parts = torch.cat([shifted & 255, (shifted >> 8) & 255, shifted >> 16])
    first = places >> 3
    return Coded(unary, _bytes(torch.cat([first, first + 1, first + 2]), parts, bits[1]))


def decode(coded: Coded, parameters: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the symbols behind ``encode``, of which there are as many as parameters."""
    ends = unpack_codes(coded.unary, 1, 8 * len(coded.unary)).nonzero().flatten()
    quotients = ends.diff(prepend=ends.new_full((1,), -1)) - 1
    places = parameters.cumsum(0) - parameters
    padded = torch.cat([coded.remainders, coded.remainders.new_zeros(3)]).long()
    first = places >> 3
    window = sum(padded.index_select(0, first + byte) << 8 * byte for byte in range(3))
    return quotients << parameters | (window >> (places & 7)) & ((1 << parameters) - 1)


def _bytes(places: Tensor, values: Tensor, bits: int) -> UInt8[Tensor, " bytes"]:
    """Add values up in their bytes; none of their bits meet, so that nothing carries."""
    length = ceil(bits / 8)
    # Three more: a window may begin at the very end and reach over it, where its bits are zero.
    return (
        torch.zeros(length + 3, dtype=torch.int64, device=places.device)
        .index_add_(0, places, values)[:length]
        .to(torch.uint8)
    )
