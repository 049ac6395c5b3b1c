"""The step between two codes of a coefficient: the smallest that fits a size, or the largest within an error."""

from collections.abc import Callable
from math import ceil, exp, inf, log, log2
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.coefficients import Candidates, Sorted, Threshold, in_ledger
from fedact.compression.transform.order import CLASSES
from fedact.compression.transform.rice import best_parameter

ROUND_DOWN = 0.33
"""A coefficient is rounded up from 1 - this: zeros are cheaper than the error that they make."""
MEAN_STEPS = 4
"""Channel means are this much finer than the coefficients: their error is the same in every example and adds up."""
LOWER = 0.85
"""Of the last batch's step: the smallest that is tried for the next batch before all others."""
AIM, ENOUGH = 0.98, 0.96
"""How much of the room, or of the error, a step should use, and how much is enough not to try another."""
TRIALS = 8
KEPT_BYTES, PASSING_BYTES = 17, 24
"""Of numpy's memory at most, for a nonzero coefficient: its symbols, and what making or writing them takes beside them."""
STEPS_AN_OCTAVE = 16


class Symbols(NamedTuple):
    """What is written at a step.

    means, gaps, sizes: the means' numbers, the zeros before each nonzero, and the nonzeros', less one, doubled, and one more
    where it is negative. table: the remainder bits of gaps (in a byte's lower half) and sizes (the sign not among them) by
    class, and of the means; counts: nonzeros by class. quotients: of means, gaps and sizes; bits: of quotients and fields.
    entry: stands in the ledger for these arrays.
    """

    step: float
    means: Int[np.ndarray, " channels"]
    gaps: Int[np.ndarray, " nonzeros"]
    sizes: Int[np.ndarray, " nonzeros"]
    table: UInt8[np.ndarray, " classes_and_one"]
    counts: Int[np.ndarray, " classes"]
    quotients: Int[np.ndarray, " n"]
    bits: tuple[int, int]
    entry: UInt8[Tensor, " bytes"]

    @property
    def size(self) -> int:
        """The bytes of the body."""
        return -(-self.bits[0] // 8) - (-self.bits[1] // 8)


class Remainders(NamedTuple):
    """The bits of remainders: of the means, and of the gap and the size (sign included) of every nonzero."""

    of_means: int
    of_gaps: Int[np.ndarray, " nonzeros"]
    of_sizes: Int[np.ndarray, " nonzeros"]

    def widths(self, channels: int) -> Int[np.ndarray, " n"]:
        """Return the bits of the fields: of every channel's mean, then of every nonzero's gap and size together."""
        return np.concatenate([np.full(channels, self.of_means, dtype=np.int32), self.of_gaps + self.of_sizes])


def remainder_bits(table: UInt8[np.ndarray, " classes_and_one"], counts: Int[np.ndarray, " classes"]) -> Remainders:
    """Return the bits of remainders; table: by class, and of the means."""
    by_class = table[:-1].astype(np.int32)
    return Remainders(int(table[-1]), np.repeat(by_class & 15, counts), np.repeat((by_class >> 4) + 1, counts))


def threshold_near(step: float) -> Threshold:
    """Return the threshold that allows steps down to 0.85 times a given one."""
    return lambda _: LOWER * step * (1 - ROUND_DOWN)


def symbols(step: float, coefficients: Sorted) -> Symbols:
    """Return the symbols of coefficients and channel means that are rounded at a step."""
    values, places = coefficients.values, coefficients.places
    scaled = np.abs(values)
    scaled /= np.float32(step)
    scaled += np.float32(ROUND_DOWN)
    sizes = scaled.astype(np.int32)
    del scaled
    if not sizes.all():
        (nonzero,) = sizes.nonzero()
        sizes, places, values = sizes[nonzero], places[nonzero], values[nonzero]
        del nonzero
    entry, others = in_ledger(KEPT_BYTES * len(sizes)), in_ledger(PASSING_BYTES * len(sizes))
    sizes -= 1
    firsts = places.searchsorted(coefficients.starts)
    counts = firsts[1:] - firsts[:-1]
    (used,) = counts.nonzero()
    begins, starts = firsts[used], coefficients.starts[used]
    gaps = places - 1
    gaps[1:] -= places[:-1]
    gaps[begins] = places[begins] - starts
    totals = np.zeros((2, CLASSES))
    if len(used):
        totals[0, used] = places[firsts[used + 1] - 1] - starts + 1 - counts[used]
        totals[1, used] = np.add.reduceat(sizes, begins, dtype=np.int64)
    means = zigzag(coefficients.means, step / MEAN_STEPS)
    of_gaps, of_sizes = best_parameter(totals / np.maximum(counts, 1))
    table = np.append(of_gaps + 16 * of_sizes, best_parameter(means.mean()))
    sizes *= 2
    sizes += values < 0
    bits = remainder_bits(table, counts)
    quotients = np.concatenate([means >> bits.of_means, gaps >> bits.of_gaps, sizes >> bits.of_sizes])
    fields = bits.of_means * len(means) + int((of_gaps + of_sizes + 1) @ counts)
    del others
    return Symbols(
        step, means, gaps, sizes, table, counts, quotients, (int(quotients.sum()) + len(quotients), fields), entry
    )


def zigzag(means: Float[np.ndarray, " channels"], step: float) -> Int[np.ndarray, " channels"]:
    """Return means in steps as numbers from 0: 0, 1, -1, 2, -2, ..."""
    numbers = np.rint(means / np.float32(-step)).astype(np.int32)
    return (numbers << 1) ^ (numbers >> 31)


def from_zigzag(numbers: Int[np.ndarray, " channels"], step: float) -> Float[np.ndarray, " channels"]:
    """Return the means behind ``zigzag``."""
    return ((numbers >> 1) ^ -(numbers & 1)).astype(np.float32) * np.float32(-step)


def symbols_within(room: int, coefficients: Sorted, threshold: float, guess: float | None) -> Symbols:
    """Return the symbols at about the smallest step whose body has at most ``room`` bytes.

    threshold: the candidates'; guess: where the search starts.
    """
    largest = max(_magnitude(coefficients.values), MEAN_STEPS * _magnitude(coefficients.means), 1e-30)
    best: dict[float, Symbols] = {}

    def excess(level: float) -> float:
        tried = symbols(exp(level), coefficients)
        # Only the best is kept: a trial takes several times the memory of what it codes.
        if tried.size <= room and level < min(best, default=inf):
            best.clear()
            best[level] = tried
        return log(max(tried.size, 1) / room)

    start = guess or _step_for_room(room, coefficients) or largest
    lowest = log(max(threshold / (1 - ROUND_DOWN), largest * 2.0**-22))
    level = _smallest(excess, log(start), lowest)
    # At a step of several times the largest nothing is left but a bit a channel, which always fits.
    return best[level] if level < inf else symbols(8 * largest, coefficients)


def largest_step(
    error: float, candidates: Candidates, means: Float[np.ndarray, " channels"], batch: int, guess: float | None
) -> float | None:
    """Return the largest step with error energy at most ``error``; None if it needs coefficients below the threshold.

    The step is a power of 2^(1/16), so that it hardly ever depends on the guess. batch: examples that share the means, whose
    error counts in full.
    """
    sizes, threshold = np.abs(candidates.values), candidates.threshold
    largest = max(_magnitude(sizes), MEAN_STEPS * _magnitude(means), 1e-30)
    # What is no candidate is rounded to zero.
    dropped = max(0.0, candidates.energy - float(sizes @ sizes)) if threshold else 0.0

    def excess(number: int) -> float:
        step = 2 ** (number / STEPS_AN_OCTAVE)
        scaled = sizes / np.float32(step)
        scaled -= np.floor(scaled + np.float32(ROUND_DOWN))
        lost = dropped + float(scaled @ scaled) * step**2
        lost += batch * len(means) * (step / MEAN_STEPS / 2) ** 2
        return log(max(lost, 1e-300) / max(error, 1e-300))

    lowest = ceil(STEPS_AN_OCTAVE * log2(max(threshold / (1 - ROUND_DOWN), largest * 2.0**-22)))
    number = _last_below(excess, round(STEPS_AN_OCTAVE * log2(guess or largest / 8)), lowest)
    return None if number is None else 2 ** (number / STEPS_AN_OCTAVE)


def _last_below(excess: Callable[[int], float], start: int, lowest: int) -> int | None:
    """Return the last number from the lowest on where a rising function is at most 0, None where there is none."""
    below, above, number = lowest - 1, lowest + 64 * STEPS_AN_OCTAVE, max(start, lowest)
    while above - below > 1:
        value = excess(number)
        below, above = (number, above) if value <= 0 else (below, number)
        # A squared error rises about as the step to the power of one and a half.
        jump = -value * STEPS_AN_OCTAVE / (1.5 * log(2))
        number = number + (max(1, round(jump)) if value <= 0 else min(-1, round(jump)))
        number = number if below < number < above else (below + above) // 2
    return below if below >= lowest else None


def _smallest(excess: Callable[[float], float], start: float, lowest: float, slope: float = -1.0) -> float:
    """Return about the smallest level where a falling function is at most 0, by secants; infinity where there is none."""
    level, best, too_low = max(start, lowest), inf, lowest
    last: tuple[float, float] | None = None
    for _ in range(TRIALS):
        value = excess(level)
        if value > 0:
            too_low = max(too_low, level)
        else:
            best = min(best, level)
        if value <= 0 and (value >= log(ENOUGH) or level <= lowest):
            break
        if last and level != last[0] and value != last[1]:
            slope = min(-0.2, (value - last[1]) / (level - last[0]))
        last = level, value
        level = max(lowest, level - (value - log(AIM)) / slope)
        if not too_low < level < best:
            level = (too_low + min(best, too_low + log(4))) / 2
    return best


def _step_for_room(room: int, coefficients: Sorted, bits: float = 7) -> float:
    """Return the step that leaves as many nonzeros as have room, at the average bits of a run and a size."""
    sizes = np.abs(coefficients.values)
    if not len(sizes):
        return 0.0
    place = len(sizes) - max(1, min(len(sizes), int(8 * room / bits)))
    return float(np.partition(sizes, place)[place]) / (1 - ROUND_DOWN)


def _magnitude(values: Float[np.ndarray, " n"]) -> float:
    return float(np.abs(values).max()) if len(values) else 0.0
