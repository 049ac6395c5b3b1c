"""Sparse coefficients: those that can matter, and the order in which they are coded."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.fast import kernel
from fedact.compression.transform.order import BLOCKS, CLASS_STARTS, CLASSES, Order, order, places_in

TINY = float(np.finfo(np.float32).tiny)
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

    places: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    threshold: float
    energy: float


class Sorted(NamedTuple):
    """Candidates in the order in which they are coded: values, and places in that order.

    starts: where a class starts in it, and the end; means: of the channels, scaled like a coefficient.
    """

    values: Float[np.ndarray, " n"]
    places: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " classes_and_one"]
    means: Float[np.ndarray, " channels"]


class Levels(NamedTuple):
    """Octaves of the mean magnitude below the largest, 0 to 15."""

    of_channels: UInt8[np.ndarray, " channels"]
    of_rings: UInt8[np.ndarray, " rings"]


Threshold = Callable[[Float[Tensor, " sample"]], float]
"""Takes the first chunk's coefficients, returns the magnitude below which none is coded."""


def collect_candidates(coefficients: Iterable[Tensor], threshold: Threshold) -> Candidates:
    """Return the coefficients above a threshold, chunk by chunk: only a few examples' are in memory at once."""
    parts: list[tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]] = []
    start, smallest, energy = 0, 0.0, 0.0
    for chunk in coefficients:
        flat = chunk.view(-1)
        smallest = smallest if parts else threshold(flat)
        energy += float(flat.dot(flat))
        places, values = _above(flat, smallest)
        places += start
        start += flat.numel()
        parts.append((places, values))
    places, values = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    return Candidates(places, values, smallest, energy)


def _above(flat: Float[Tensor, " n"], threshold: float) -> tuple[Int[np.ndarray, " large"], Float[np.ndarray, " large"]]:
    """Return the places and the values whose magnitude is above a threshold, on the host."""
    if flat.device.type == "cpu" and (loops := kernel()):
        # What numpy's way takes beside: no byte may hang on what is installed.
        entry, mask = in_ledger(4 * flat.numel()), torch.empty(flat.shape, dtype=torch.bool).numpy()
        loops.mark_above(flat.numpy(), threshold, mask)
        count = int(np.count_nonzero(mask))
        places, values = torch.empty(count, dtype=torch.int32).numpy(), torch.empty(count).numpy()
        loops.take_marked(flat.numpy(), mask, mask[: len(mask) // 32 * 32].view(np.uint64).reshape(-1, 4), places, values)
        del entry
        return places, values
    sizes = flat.abs()
    if flat.device.type != "cpu":
        large = (sizes > threshold).nonzero().flatten()
        return large.to(torch.int32).cpu().numpy(), flat.index_select(0, large).cpu().numpy()
    # Several times faster in numpy, into memory that the ledger sees.
    mask = torch.empty(flat.shape, dtype=torch.bool).numpy()
    np.greater(sizes.numpy(), np.float32(threshold), out=mask)
    (found,) = mask.nonzero()
    places, values = torch.empty(len(found), dtype=torch.int32).numpy(), torch.empty(len(found)).numpy()
    places[:] = found
    return places, flat.numpy().take(found, out=values, mode="clip")


def in_ledger(count: int) -> UInt8[Tensor, " count"]:
    """Return a tensor that is never touched: it stands in the ledger for so many bytes of numpy's, which no ledger sees."""
    return torch.empty(count, dtype=torch.uint8)


def above_threshold(threshold: float, candidates: Candidates) -> Candidates:
    """Return the candidates above a higher threshold."""
    (large,) = (np.abs(candidates.values) > np.float32(threshold)).nonzero()
    return Candidates(candidates.places[large], candidates.values[large], threshold, candidates.energy)


def size_threshold(bits: float, elements: int) -> Threshold:
    """Return the threshold below which no coefficient fits into so many bits for all of the elements."""
    share = 1 - bits / LEAST_BITS_PER_NONZERO / max(1, elements)

    def threshold(flat: Tensor) -> float:
        if share <= 0:
            return 0.0
        sample = _sample(flat)
        place = max(1, int(share * len(sample))) - 1
        return 0.8 * float(np.partition(sample, place)[place])

    return threshold


def error_threshold(share: float, mean_energy: float) -> Threshold:
    """Return the threshold whose dropped coefficients use at most half of the allowed energy loss.

    share: of the energy that may be lost, the means' included; mean_energy: that of the means, spread over all coefficients.
    """

    def threshold(flat: Tensor) -> float:
        sizes = np.sort(_sample(flat))
        energies = np.square(sizes).cumsum()
        most = DROPPED_SHARE * share * (energies[-1] + mean_energy * len(sizes))
        dropped = int(np.searchsorted(energies, most, side="right"))
        return float(sizes[dropped - 1]) if dropped else 0.0

    return threshold


def sort(
    candidates: Candidates, means: Float[np.ndarray, " channels"], rings: UInt8[np.ndarray, " positions"], batch: int
) -> tuple[Sorted, Levels]:
    """Return the candidates in the order in which they are coded, which follows from the levels of channels and rings."""
    if loops := kernel(len(candidates.places)):
        sums = np.zeros(len(means)), np.zeros(batch * len(rings))
        loops.add_magnitudes(candidates.places, candidates.values, *sums)
        levels = _levels(*sums, rings, batch)
        starts = np.empty(len(BLOCKS) + 1, dtype=np.int32)
        places, values = np.empty_like(candidates.places), np.empty_like(candidates.values)
        by_levels = levels.of_rings[rings], levels.of_channels, batch, BLOCKS
        loops.sort(candidates.places, candidates.values, *by_levels, starts, places, values)
        return Sorted(values, places, starts[CLASS_STARTS], means), levels
    rows = candidates.places // np.int32(len(means))
    channels = candidates.places - rows * np.int32(len(means))
    sizes = np.abs(candidates.values)
    by_channel, by_row = np.bincount(channels, sizes, len(means)), np.bincount(rows, sizes, batch * len(rings))
    levels = _levels(by_channel, by_row, rings, batch)
    by = order_of(levels, rings, batch)
    # Sorted as one 64-bit number: the place above the bits of the value.
    pairs = np.empty((len(rows), 2), dtype=np.int32)
    pairs[:, 0], pairs[:, 1] = candidates.values.view(np.int32), places_in(by, rows, channels)
    pairs.view(np.int64)[:, 0].sort()
    values, places = np.ascontiguousarray(pairs.T)
    return Sorted(values.view(np.float32), places, by.class_starts, means), levels


def _levels(
    by_channel: Float[np.ndarray, " channels"],
    by_row: Float[np.ndarray, " rows"],
    rings: UInt8[np.ndarray, " positions"],
    batch: int,
) -> Levels:
    """Return the levels for these sums of magnitudes."""
    by_position, counts = by_row.reshape(batch, -1).sum(0), np.bincount(rings)
    return Levels(_octaves(by_channel), _octaves(np.bincount(rings, by_position, len(counts)) / counts))


def order_of(levels: Levels, rings: UInt8[np.ndarray, " positions"], batch: int) -> Order:
    """Return the order that follows from the levels; rings: the group of every position."""
    return order(levels.of_rings[rings][None].repeat(batch, axis=0).ravel(), levels.of_channels)


def _sample(flat: Float[Tensor, " n"]) -> Float[np.ndarray, " sample"]:
    return flat[:: max(1, len(flat) // SAMPLE)].abs().cpu().numpy()


def _octaves(sizes: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
    logarithms = np.log2(np.maximum(sizes, TINY))
    levels: UInt8[np.ndarray, " n"] = np.minimum((logarithms.max() - logarithms).round(), CLASSES - 1).astype(np.uint8)
    return levels
