"""Sparse coefficients in a given number of bytes: a uniform step, classes of like size, runs of zeros in Rice's code."""

from collections.abc import Callable
from math import ceil, exp, log, log2, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.packing import pack_codes, packed_bytes, unpack_codes
from fedact.compression.rice import Coded, best_parameter, coded_bits, coded_bytes, decode, encode

CLASSES = 16
ROUND_DOWN = 0.33
"""A coefficient is rounded up from 1 - this: zeros are cheaper than the error that they make."""
MEAN_STEPS = 4
"""Channel means are this much finer than the coefficients: their error is the same in every example and adds up."""
HEADER = (4 + 4 + 4 * CLASSES) + (CLASSES + 1 + 3)
"""Step, bits of the quotients, coefficients by class; remainder bits by class and of the means, filled up to 92 bytes."""
LEAST_BITS_PER_NONZERO = 3.5
SAMPLE = 2**14
TRIALS = 8
AIM, ENOUGH = 0.985, 0.97
"""How much of the room a step should use, and how much is enough not to try another."""


class Candidates(NamedTuple):
    """The coefficients that may end up nonzero: places in (batch, position, channel) order, and values."""

    places: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    least: float


class Classes(NamedTuple):
    """Which class each cell (position, channel) is in: by class, the cells in order, where they start, how many."""

    of_cell: Int[Tensor, " cells"]
    cells: Int[Tensor, " cells"]
    starts: Int[Tensor, " classes"]
    sizes: Int[Tensor, " classes"]


class Sorted(NamedTuple):
    """Candidates by class, in it by place: values, classes, and places within the class."""

    values: Float[Tensor, " n"]
    classes: Int[Tensor, " n"]
    places: Int[Tensor, " n"]


class Symbols(NamedTuple):
    """What is written at some step: whole numbers with their remainder bits, the nonzeros' signs, counts by class."""

    step: float
    numbers: Int[Tensor, " n"]
    parameters: Int[Tensor, " n"]
    table: Int[Tensor, " classes_and_one"]
    negative: Tensor
    counts: Int[Tensor, " classes"]

    @property
    def size(self) -> int:
        """The bytes of the body."""
        return coded_bytes(coded_bits(self.numbers, self.parameters)) + packed_bytes(len(self.negative), 1)


def overhead_bytes(channels: int, rings: int) -> int:
    """Return the bytes that are there whatever the rate: header, levels in half bytes, one bit for each channel's mean."""
    return HEADER + ceil(channels / 2) + ceil(rings / 2) + ceil(channels / 8)


def candidates(
    images: Tensor, coefficients: Callable[[Tensor], Tensor], chunks: list[Tensor], budget_bits: float
) -> Candidates:
    """Return the coefficients above a threshold that a budget of bits has no room to go below.

    Chunk by chunk: no more than a few examples' coefficients are ever there at once.
    """
    share = 1 - budget_bits / LEAST_BITS_PER_NONZERO / max(1, images.numel())
    places, values, start, least = [], [], 0, 0.0
    for number, chunk in enumerate(chunks):
        flat = coefficients(chunk).flatten()
        if number == 0 and share > 0:
            sample = flat[:: max(1, len(flat) // SAMPLE)].abs()
            least = 0.8 * float(sample.kthvalue(max(1, int(share * len(sample)))).values)
        found = ((flat > least) | (flat < -least)).nonzero().flatten()
        places.append(found + start)
        values.append(flat[found])
        start += len(flat)
    return Candidates(torch.cat(places), torch.cat(values), least)


def levels(found: Candidates, channels: int, rings: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many octaves each channel and each ring is below the largest: 0 to 15."""
    size = found.values.abs().double()
    by_channel = torch.bincount(found.places % channels, size, minlength=channels)
    positions = (found.places // channels) % len(rings)
    by_ring = torch.bincount(rings[positions], size, minlength=int(rings[-1:].max()) + 1 if len(rings) else 1)
    return _octaves(by_channel), _octaves(by_ring / torch.bincount(rings, minlength=len(by_ring)).clamp_min(1))


def classes(channel_levels: Tensor, ring_levels: Tensor, rings: Tensor) -> Classes:
    """Return the classes: the sum of both levels says how large a cell's coefficients are."""
    of_cell = (ring_levels[rings][:, None] + channel_levels).clamp_max(CLASSES - 1).flatten()
    sizes = torch.bincount(of_cell, minlength=CLASSES)
    return Classes(of_cell, of_cell.to(torch.uint8).argsort(stable=True), sizes.cumsum(0) - sizes, sizes)


def sort(found: Candidates, by: Classes) -> Sorted:
    """Return the candidates by class."""
    ranks = torch.empty_like(by.cells)
    ranks[by.cells] = torch.arange(len(by.cells), device=ranks.device)
    examples, cells = found.places // len(by.cells), found.places % len(by.cells)
    kinds = by.of_cell[cells]
    places = examples * by.sizes[kinds] + ranks[cells] - by.starts[kinds]
    order = kinds.to(torch.uint8).sort(stable=True).indices
    return Sorted(found.values[order], kinds[order], places[order])


def symbols(step: float, found: Sorted, means: Tensor) -> Symbols:
    """Return what is written at a step: the means, the runs of zeros, the sizes less one."""
    scaled = (found.values.abs() / step + ROUND_DOWN).floor()
    nonzero = scaled >= 1
    kinds, places, sizes = found.classes[nonzero], found.places[nonzero], scaled[nonzero].long() - 1
    counts = torch.bincount(kinds, minlength=CLASSES)
    before = places.roll(1)
    before[(counts.cumsum(0) - counts)[counts > 0]] = -1
    gaps = places - before - 1
    signed = (means / step * MEAN_STEPS).round().long()
    shown = torch.where(signed > 0, 2 * signed - 1, -2 * signed)
    table = torch.stack([_parameters(kinds, gaps, counts), _parameters(kinds, sizes, counts)])
    mean_bits = best_parameter(shown.double().mean())
    parameters = torch.cat([mean_bits.expand(len(shown)), table[0][kinds], table[1][kinds]])
    numbers = torch.cat([shown, gaps, sizes])
    return Symbols(
        step, numbers, parameters, torch.cat([table[0] + 16 * table[1], mean_bits[None]]),
        found.values[nonzero] < 0, counts,
    )  # fmt: skip


def fitting(found: Sorted, means: Tensor, least: float, room: int) -> Symbols:
    """Return the symbols at a step whose body fills the room but for a little, found by secants of logarithms."""
    largest = max(float(found.values.abs().max()) if len(found.values) else 0.0, MEAN_STEPS * float(means.abs().max()))
    floor = max(least / (1 - ROUND_DOWN), largest * 2.0**-22, 1e-38)
    # At a step this large nothing is left but a bit a channel, which always fits.
    best, too_small = symbols(max(8 * largest, floor), found, means), floor
    step, slope = _first_guess(found, room, floor), -1.0
    last: tuple[float, float] | None = None
    for _ in range(TRIALS):
        tried = symbols(step, found, means)
        excess = log(max(tried.size, 1) / (AIM * room))
        if tried.size > room:
            too_small = max(too_small, step)
        elif step < best.step:
            best = tried
        if tried.size <= room and (tried.size >= ENOUGH * room or step <= floor):
            break
        if last and step != last[0] and excess != last[1]:
            slope = min(-0.2, (excess - last[1]) / log(step / last[0]))
        last = step, excess
        step = max(floor, step * exp(-excess / slope))
        if not too_small < step < best.step:
            step = max(floor, sqrt(too_small * min(best.step, 4 * too_small)))
    return best


def write(chosen: Symbols, channel_levels: Tensor, ring_levels: Tensor, total: int) -> UInt8[Tensor, " bytes"]:
    """Return everything in exactly so many bytes, the last ones zero."""
    coded = encode(chosen.numbers, chosen.parameters)
    unary_bits, _ = coded_bits(chosen.numbers, chosen.parameters)
    device = chosen.counts.device
    packed = torch.zeros(total, dtype=torch.uint8, device=device)
    packed[:4].view(torch.float32).fill_(chosen.step)
    packed[4:8].view(torch.int32).fill_(unary_bits)
    packed[8 : 8 + 4 * CLASSES].view(torch.int32).copy_(chosen.counts)
    packed[8 + 4 * CLASSES : HEADER - 3] = chosen.table.to(torch.uint8)
    halves = [pack_codes(each.to(torch.uint8), 4) for each in (channel_levels, ring_levels)]
    body = torch.cat([*halves, *coded, pack_codes(chosen.negative.view(torch.uint8), 1)])
    packed[HEADER : HEADER + len(body)] = body
    return packed


def read(
    packed: UInt8[Tensor, " bytes"], images: tuple[int, int], channels: int, rings: Tensor
) -> tuple[Candidates, Float[Tensor, " channels"]]:
    """Return the nonzero coefficients with their places, and the channels' means; images: batch and positions."""
    step = float(packed[:4].view(torch.float32))
    unary = ceil(int(packed[4:8].view(torch.int32)) / 8)
    counts = packed[8 : 8 + 4 * CLASSES].view(torch.int32).long()
    table = packed[8 + 4 * CLASSES : HEADER - 3].long()
    ring_count = int(rings.max()) + 1
    ends = [HEADER, ceil(channels / 2), ceil(ring_count / 2), unary]
    first, second, third, body = torch.tensor(ends).cumsum(0).tolist()
    by = classes(
        unpack_codes(packed[first:second], 4, channels).long(), unpack_codes(packed[second:third], 4, ring_count).long(), rings
    )
    kinds = torch.arange(CLASSES, device=packed.device).repeat_interleave(counts)
    parameters = torch.cat([table[-1:].expand(channels), (table[:-1] & 15)[kinds], (table[:-1] >> 4)[kinds]])
    signs = body + ceil(int(parameters.sum()) / 8)
    numbers = decode(Coded(packed[third:body], packed[body:signs]), parameters)
    shown, gaps, sizes = numbers.split([channels, len(kinds), len(kinds)])
    values = (sizes + 1) * step
    negative = unpack_codes(packed[signs : signs + packed_bytes(len(kinds), 1)], 1, len(kinds)).bool()
    signed = torch.where(shown % 2 == 1, shown // 2 + 1, -(shown // 2))
    return Candidates(_places(gaps, kinds, counts, by), torch.where(negative, -values, values), 0.0), signed * step / MEAN_STEPS


def _places(gaps: Tensor, kinds: Tensor, counts: Tensor, by: Classes) -> Tensor:
    """Return the places in (batch, position, channel) order behind the runs of zeros in each class."""
    ends = (gaps + 1).cumsum(0)
    padded = torch.cat([ends.new_zeros(1), ends])
    within = ends - padded[counts.cumsum(0) - counts][kinds] - 1
    sizes = by.sizes[kinds]
    return within // sizes * len(by.cells) + by.cells[by.starts[kinds] + within % sizes]


def _parameters(kinds: Tensor, numbers: Tensor, counts: Tensor) -> Tensor:
    means = torch.bincount(kinds, numbers.double(), minlength=CLASSES) / counts.clamp_min(1)
    return best_parameter(means)


def _octaves(sizes: Tensor) -> Tensor:
    largest = sizes.max().clamp_min(torch.finfo(torch.float64).tiny)
    return (-(sizes / largest).clamp_min(2.0**-40).log2()).round().clamp(0, CLASSES - 1).long()


def _first_guess(found: Sorted, room: int, floor: float) -> float:
    """Return a step by how many nonzeros the room has bits for, at the bits that a run and a size take on the average."""
    if not len(found.values):
        return floor
    count = max(1, min(len(found.values), int(8 * room / 7)))
    size = float(found.values.abs().kthvalue(len(found.values) - count + 1).values)
    return max(floor, size / (1 - ROUND_DOWN))


assert log2(CLASSES) == 4, "levels are half bytes"
