"""Sparse coefficients: those that can matter, and classes of cells whose coefficients are of like size."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

CLASSES = 16
"""Classes of coefficients, an octave each: as many as half a byte can tell apart."""
SAMPLE = 2**14
"""Coefficients that a threshold is estimated from."""
LEAST_BITS_PER_NONZERO = 3.5
"""No code of a nonzero coefficient, with the zeros before it, is shorter on the average."""
DROPPED_SHARE = 0.5
"""Of the allowed energy loss, the share that dropped coefficients may use; rounding uses the rest."""


class Candidates(NamedTuple):
    """Coefficients above a threshold: places in (batch, position, channel) order, and values.

    energy: of all coefficients, those below the threshold too.
    """

    places: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    threshold: float
    energy: float


class Classes(NamedTuple):
    """The class of every cell (position, channel), and the cells sorted by class: where a class starts, and its size."""

    of_cell: UInt8[Tensor, " cells"]
    cells: Int[Tensor, " cells"]
    starts: Int[Tensor, " classes"]
    sizes: Int[Tensor, " classes"]


class Sorted(NamedTuple):
    """Candidates sorted by class and place: values, classes, and places within the class."""

    values: Float[Tensor, " n"]
    classes: UInt8[Tensor, " n"]
    places: Int[Tensor, " n"]


Threshold = Callable[[Float[Tensor, " sample"]], float]
"""Takes the first chunk's coefficients, returns the magnitude below which none is coded."""


def collect_candidates(coefficients: Iterable[Tensor], threshold: Threshold) -> Candidates:
    """Return the coefficients above a threshold, chunk by chunk: only a few examples' are in memory at once."""
    places: list[Tensor] = []
    values: list[Tensor] = []
    start, smallest, energy = 0, 0.0, 0.0
    for chunk in coefficients:
        flat = chunk.flatten()
        smallest = smallest if places else threshold(flat)
        large = (flat.abs() > smallest).nonzero().flatten()
        values.append(flat.index_select(0, large))
        places.append(large.to(torch.int32).add_(start))
        start += len(flat)
        energy += float(flat.norm()) ** 2
    return Candidates(torch.cat(places), torch.cat(values), smallest, energy)


def above_threshold(threshold: float, candidates: Candidates) -> Candidates:
    """Return the candidates that reach a higher threshold."""
    large = (candidates.values.abs() >= threshold).nonzero().flatten()
    return Candidates(
        candidates.places.index_select(0, large), candidates.values.index_select(0, large), threshold, candidates.energy
    )


def size_threshold(bits: float, elements: int) -> Threshold:
    """Return the threshold below which no coefficient fits into so many bits for all of the elements."""
    share = 1 - bits / LEAST_BITS_PER_NONZERO / max(1, elements)

    def threshold(flat: Tensor) -> float:
        if share <= 0:
            return 0.0
        sample = _sample(flat)
        return 0.8 * float(sample.kthvalue(max(1, int(share * len(sample)))).values)

    return threshold


def error_threshold(share: float, mean_energy: float) -> Threshold:
    """Return the threshold whose dropped coefficients use at most half of the allowed energy loss.

    share: of the energy that may be lost, the means' included; mean_energy: that of the means, spread over all coefficients.
    """

    def threshold(flat: Tensor) -> float:
        sizes = _sample(flat).sort().values
        energies = sizes.square().cumsum(0)
        dropped = int((energies <= DROPPED_SHARE * share * (energies[-1] + mean_energy * len(sizes))).sum())
        return float(sizes[dropped - 1]) if dropped else 0.0

    return threshold


def octaves(candidates: Candidates, channels: int, rings: Int[Tensor, " positions"]) -> tuple[Tensor, Tensor]:
    """Return the level of every channel and of every ring: octaves of its mean magnitude below the largest, 0 to 15."""
    sizes = candidates.values.abs()
    by_channel = torch.bincount(candidates.places % channels, sizes, minlength=channels)
    positions = torch.div(candidates.places, channels, rounding_mode="floor").remainder_(len(rings))
    counts = torch.bincount(rings)
    by_ring = torch.bincount(rings.index_select(0, positions), sizes, minlength=len(counts))
    return _octaves(by_channel), _octaves(by_ring / counts)


def classify(channel_levels: UInt8[Tensor, " channels"], ring_levels: UInt8[Tensor, " rings"], rings: Tensor) -> Classes:
    """Return the class of every cell: its channel's and its ring's levels added up."""
    of_cell = (ring_levels.index_select(0, rings)[:, None] + channel_levels).clamp_max(CLASSES - 1).flatten()
    sizes = torch.bincount(of_cell, minlength=CLASSES).to(torch.int32)
    cells = of_cell.argsort(stable=True).to(torch.int32)
    return Classes(of_cell, cells, sizes.cumsum(0, dtype=torch.int32) - sizes, sizes)


def sort_by_class(candidates: Candidates, classes: Classes) -> Sorted:
    """Return the candidates sorted by class; a place within a class is example x class size + rank of the cell."""
    ranks = torch.empty_like(classes.cells)
    ranks[classes.cells.long()] = torch.arange(len(classes.cells), dtype=torch.int32, device=ranks.device)
    ranks -= classes.starts.index_select(0, classes.of_cell.to(torch.int32))
    places = torch.div(candidates.places, len(classes.cells), rounding_mode="floor")
    cells = candidates.places - places * len(classes.cells)
    labels = classes.of_cell.index_select(0, cells)
    places *= classes.sizes.index_select(0, labels.to(torch.int32))
    places += ranks.index_select(0, cells)
    del cells
    labels, order = labels.sort(stable=True)
    return Sorted(candidates.values.index_select(0, order), labels, places.index_select(0, order))


def places_from_gaps(gaps: Tensor, labels: Tensor, counts: Tensor, classes: Classes) -> Int[Tensor, " n"]:
    """Return places in (batch, position, channel) order, of nonzeros with so many zeros of their class before them.

    gaps: the numbers of zeros; labels: the nonzeros' classes, in order; counts: nonzeros by class.
    """
    ends = (gaps + 1).cumsum(0, dtype=torch.int32)
    firsts = torch.cat([ends.new_zeros(1), ends]).index_select(0, counts.cumsum(0) - counts)
    within = ends - 1 - firsts.index_select(0, labels)
    sizes = classes.sizes.index_select(0, labels)
    examples = torch.div(within, sizes, rounding_mode="floor")
    ranks = within - examples * sizes + classes.starts.index_select(0, labels)
    return examples * len(classes.cells) + classes.cells.index_select(0, ranks)


def _sample(flat: Tensor) -> Tensor:
    return flat[:: max(1, len(flat) // SAMPLE)].abs()


def _octaves(sizes: Tensor) -> Tensor:
    # Of no candidates bincount makes whole numbers.
    logarithms = sizes.float().clamp_min(torch.finfo(torch.float32).tiny).log2_()
    return (logarithms.max() - logarithms).round_().clamp_max_(CLASSES - 1).to(torch.uint8)
