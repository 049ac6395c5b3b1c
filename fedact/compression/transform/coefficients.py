"""Sparse coefficients: those that can matter, and classes of cells whose coefficients are of like size."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

CLASSES = 16
"""Octaves: as many as half a byte can say."""
SAMPLE = 2**14
"""Coefficients that a threshold is estimated from."""
LEAST_BITS_PER_NONZERO = 3.5
"""No code of a nonzero coefficient, with the zeros before it, is shorter on the average."""
DROPPED_SHARE = 0.5
"""Of an error, that dropped coefficients alone make up at least."""


class Candidates(NamedTuple):
    """The coefficients above ``least``: places in (batch, position, channel) order, values; and the energy of all."""

    places: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    least: float
    energy: float


class Classes(NamedTuple):
    """Which class each cell (position, channel) is in; by class, the cells in order, where they start, how many they are."""

    of_cell: UInt8[Tensor, " cells"]
    cells: Int[Tensor, " cells"]
    starts: Int[Tensor, " classes"]
    sizes: Int[Tensor, " classes"]


class Sorted(NamedTuple):
    """Candidates by class, in each by place: values, classes, and places within the class."""

    values: Float[Tensor, " n"]
    classes: UInt8[Tensor, " n"]
    places: Int[Tensor, " n"]


Threshold = Callable[[Float[Tensor, " sample"]], float]
"""Takes the first chunk's coefficients, returns the size below which no coefficient can matter."""


def candidates(coefficients: Iterable[Tensor], threshold: Threshold) -> Candidates:
    """Return the coefficients above a threshold, chunk by chunk: only a few examples' are ever there at once."""
    places: list[Tensor] = []
    values: list[Tensor] = []
    start, least, energy = 0, 0.0, 0.0
    for chunk in coefficients:
        flat = chunk.flatten()
        least = least if places else threshold(flat)
        found = (flat.abs() > least).nonzero().flatten()
        values.append(flat.index_select(0, found))
        places.append(found.to(torch.int32).add_(start))
        start += len(flat)
        energy += float(flat.norm()) ** 2
    return Candidates(torch.cat(places), torch.cat(values), least, energy)


def above(least: float, found: Candidates) -> Candidates:
    """Return the candidates from a higher threshold on."""
    enough = (found.values.abs() >= least).nonzero().flatten()
    return Candidates(found.places.index_select(0, enough), found.values.index_select(0, enough), least, found.energy)


def room_for(bits: float, elements: int) -> Threshold:
    """Return the threshold below which so many bits for all elements have no room to go."""
    share = 1 - bits / LEAST_BITS_PER_NONZERO / max(1, elements)

    def threshold(flat: Tensor) -> float:
        if share <= 0:
            return 0.0
        sample = _sample(flat)
        return 0.8 * float(sample.kthvalue(max(1, int(share * len(sample)))).values)

    return threshold


def leaving(share: float, mean_energy: float) -> Threshold:
    """Return the threshold that drops no more than a part of so small a share of the energy, the means' included."""

    def threshold(flat: Tensor) -> float:
        sizes = _sample(flat).sort().values
        energies = sizes.square().cumsum(0)
        dropped = int((energies <= DROPPED_SHARE * share * (energies[-1] + mean_energy * len(sizes))).sum())
        return float(sizes[dropped - 1]) if dropped else 0.0

    return threshold


def levels(found: Candidates, channels: int, rings: Int[Tensor, " positions"]) -> tuple[Tensor, Tensor]:
    """Return how many octaves each channel's and each ring's coefficients are below the largest: 0 to 15."""
    sizes = found.values.abs()
    by_channel = torch.bincount(found.places % channels, sizes, minlength=channels)
    positions = torch.div(found.places, channels, rounding_mode="floor").remainder_(len(rings))
    counts = torch.bincount(rings)
    by_ring = torch.bincount(rings.index_select(0, positions), sizes, minlength=len(counts))
    return _octaves(by_channel), _octaves(by_ring / counts)


def classes(channel_levels: UInt8[Tensor, " channels"], ring_levels: UInt8[Tensor, " rings"], rings: Tensor) -> Classes:
    """Return the classes: a cell's coefficients are as large as its channel's and its ring's levels say together."""
    of_cell = (ring_levels.index_select(0, rings)[:, None] + channel_levels).clamp_max(CLASSES - 1).flatten()
    sizes = torch.bincount(of_cell, minlength=CLASSES).to(torch.int32)
    cells = of_cell.argsort(stable=True).to(torch.int32)
    return Classes(of_cell, cells, sizes.cumsum(0, dtype=torch.int32) - sizes, sizes)


def by_class(found: Candidates, among: Classes) -> Sorted:
    """Return the candidates in the order of their classes."""
    # For every cell: where it is in its class; and for the whole batch, place = example x class size + that.
    ranks = torch.empty_like(among.cells)
    ranks[among.cells.long()] = torch.arange(len(among.cells), dtype=torch.int32, device=ranks.device)
    ranks -= among.starts.index_select(0, among.of_cell.to(torch.int32))
    places = torch.div(found.places, len(among.cells), rounding_mode="floor")
    cells = found.places - places * len(among.cells)
    kinds = among.of_cell.index_select(0, cells)
    places *= among.sizes.index_select(0, kinds.to(torch.int32))
    places += ranks.index_select(0, cells)
    del cells
    kinds, order = kinds.sort(stable=True)
    return Sorted(found.values.index_select(0, order), kinds, places.index_select(0, order))


def places_behind(gaps: Tensor, kinds: Tensor, counts: Tensor, among: Classes) -> Int[Tensor, " n"]:
    """Return the places in (batch, position, channel) order behind the runs of zeros in each class."""
    ends = (gaps + 1).cumsum(0, dtype=torch.int32)
    firsts = torch.cat([ends.new_zeros(1), ends]).index_select(0, counts.cumsum(0) - counts)
    within = ends - 1 - firsts.index_select(0, kinds)
    sizes = among.sizes.index_select(0, kinds)
    examples = torch.div(within, sizes, rounding_mode="floor")
    ranks = within - examples * sizes + among.starts.index_select(0, kinds)
    return examples * len(among.cells) + among.cells.index_select(0, ranks)


def _sample(flat: Tensor) -> Tensor:
    return flat[:: max(1, len(flat) // SAMPLE)].abs()


def _octaves(sizes: Tensor) -> Tensor:
    # Of no candidates bincount makes whole numbers.
    logarithms = sizes.float().clamp_min(torch.finfo(torch.float32).tiny).log2_()
    return (logarithms.max() - logarithms).round_().clamp_max_(CLASSES - 1).to(torch.uint8)
