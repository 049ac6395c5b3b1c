"""Coded coefficients as bytes: a header, the levels of channels and rings, and the body."""

from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.packing import pack_codes, packed_bytes, unpack_codes
from fedact.compression.transform.coefficients import CLASSES, classify, places_from_gaps
from fedact.compression.transform.rice import Coded, decode, encode
from fedact.compression.transform.step_size import MEAN_STEPS, Symbols

COUNTS = 4 + 4
TABLE = COUNTS + 4 * CLASSES
HEADER = TABLE + CLASSES + 1 + 3
"""Step, bits of the quotients, nonzeros by class; remainder bits by class and of the means, filled up to 92 bytes."""


class Decoded(NamedTuple):
    """The nonzero coefficients with their places in (batch, position, channel) order, and the channels' means."""

    places: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    means: Float[Tensor, " channels"]


def levels_end(channels: int, rings: int) -> int:
    """Return the bytes before the body: the header, and half a byte for every channel and ring."""
    return HEADER + ceil(channels / 2) + ceil(rings / 2)


def least_body(channels: int) -> int:
    """Return the bytes of the body of nothing but means of zero."""
    return ceil(channels / 8)


def write(symbols: Symbols, channel_levels: Tensor, ring_levels: Tensor, total: int) -> UInt8[Tensor, " bytes"]:
    """Return header, levels and body in ``total`` bytes, filled up with zeros."""
    packed = torch.zeros(total, dtype=torch.uint8, device=symbols.counts.device)
    packed[:4].view(torch.float32).fill_(symbols.step)
    packed[4:COUNTS].view(torch.int32).fill_(symbols.bits[0])
    packed[COUNTS:TABLE].view(torch.int32).copy_(symbols.counts)
    packed[TABLE : TABLE + CLASSES + 1] = symbols.table
    halves = (pack_codes(levels, 4) for levels in (channel_levels, ring_levels))
    parts = (
        *halves,
        *encode(symbols.numbers, symbols.parameters, symbols.bits),
        pack_codes(symbols.negative.view(torch.uint8), 1),
    )
    place = HEADER
    for part in parts:
        packed[place : place + len(part)] = part
        place += len(part)
    return packed


def read(packed: UInt8[Tensor, " bytes"], channels: int, rings: Int[Tensor, " positions"]) -> Decoded:
    """Return the coefficients and means that ``write`` wrote; rings: the group of every position."""
    step = packed[:4].view(torch.float32)
    quotients = ceil(int(packed[4:COUNTS].view(torch.int32)) / 8)
    counts = packed[COUNTS:TABLE].view(torch.int32).long()
    table = packed[TABLE : TABLE + CLASSES + 1]
    ring_count = int(rings.max()) + 1
    middle, body = HEADER + ceil(channels / 2), levels_end(channels, ring_count)
    channel_levels = unpack_codes(packed[HEADER:middle], 4, channels)
    cells = classify(channel_levels, unpack_codes(packed[middle:body], 4, ring_count), rings)
    labels = torch.arange(CLASSES, dtype=torch.int32, device=packed.device).repeat_interleave(counts)
    by_class = ((table[:-1] & 15).index_select(0, labels), (table[:-1] >> 4).index_select(0, labels))
    parameters = torch.cat([table[-1:].expand(channels), *by_class])
    signs = body + quotients + ceil(int(parameters.sum()) / 8)
    numbers = decode(Coded(packed[body : body + quotients], packed[body + quotients : signs]), parameters)
    mean_codes, gaps, sizes = torch.split(numbers, [channels, len(labels), len(labels)])
    negative = unpack_codes(packed[signs : signs + packed_bytes(len(labels), 1)], 1, len(labels))
    values = (sizes + 1) * (1 - 2 * negative.to(torch.int8)) * step
    means = torch.where(mean_codes % 2 == 1, (mean_codes + 1) // 2, -(mean_codes // 2)) * (step / MEAN_STEPS)
    return Decoded(places_from_gaps(gaps, labels, counts, cells), values, means)
