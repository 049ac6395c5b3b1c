"""The step between two codes of a coefficient: the smallest that fits a size, or the largest within an error."""

from collections.abc import Callable
from math import ceil, exp, inf, log, log2
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from fedact.compression.packing import packed_bytes
from fedact.compression.transform.coefficients import CLASSES, Sorted, Threshold
from fedact.compression.transform.rice import best_parameter, coded_bits, coded_bytes

ROUND_DOWN = 0.33
"""A coefficient is rounded up from 1 - this: zeros are cheaper than the error that they make."""
MEAN_STEPS = 4
"""Channel means are this much finer than the coefficients: their error is the same in every example and adds up."""
LOWER = 0.85
"""Of the last batch's step: the smallest that is tried for the next batch before all others."""
AIM, ENOUGH = 0.98, 0.96
"""How much of the room, or of the error, a step should use, and how much is enough not to try another."""
TRIALS = 8
STEPS_AN_OCTAVE = 16


class Symbols(NamedTuple):
    """What is written at a step.

    numbers: the means, the runs of zeros before the nonzeros, the nonzeros' sizes less one, each with its remainder bits in
    ``parameters``; table: those by class, and the means'; counts: nonzeros by class; bits: of quotients and remainders.
    """

    step: float
    numbers: Int[Tensor, " n"]
    parameters: UInt8[Tensor, " n"]
    table: UInt8[Tensor, " classes_and_one"]
    negative: Bool[Tensor, " nonzeros"]
    counts: Int[Tensor, " classes"]
    bits: tuple[int, int]

    @property
    def size(self) -> int:
        """The bytes of the body."""
        return coded_bytes(self.bits) + packed_bytes(len(self.negative), 1)


def threshold_near(step: float) -> Threshold:
    """Return the threshold that allows steps down to 0.85 times a given one."""
    return lambda _: LOWER * step * (1 - ROUND_DOWN)


def symbols(step: float, coefficients: Sorted, means: Float[Tensor, " channels"]) -> Symbols:
    """Return the symbols of coefficients and channel means that are rounded at a step."""
    codes = (coefficients.values.abs().div_(step).add_(ROUND_DOWN)).to(torch.int32)
    nonzero = codes.nonzero().flatten()
    labels, places = coefficients.classes.index_select(0, nonzero), coefficients.places.index_select(0, nonzero)
    sizes = codes.index_select(0, nonzero).sub_(1)
    negative = coefficients.values.index_select(0, nonzero) < 0
    del codes, nonzero
    counts = torch.bincount(labels, minlength=CLASSES)
    gaps = places.diff(prepend=places.new_full((1,), -1)).sub_(1)
    firsts = (counts.cumsum(0) - counts)[counts > 0]
    gaps[firsts] = places[firsts]
    mean_codes = _unsigned((means / step * MEAN_STEPS).round_().to(torch.int32))
    class_means = [torch.bincount(labels, numbers, minlength=CLASSES) / counts.clamp_min(1) for numbers in (gaps, sizes)]
    table = best_parameter(torch.cat([*class_means, mean_codes.double().mean()[None]]))
    of_gaps, of_sizes, of_means = table.split([CLASSES, CLASSES, 1])  # type: ignore[no-untyped-call]
    labels = labels.to(torch.int32)
    numbers = torch.cat([mean_codes, gaps, sizes])
    parameters = torch.cat(
        [of_means.expand(len(mean_codes)), of_gaps.index_select(0, labels), of_sizes.index_select(0, labels)]
    )
    table = torch.cat([of_gaps + 16 * of_sizes, of_means])
    return Symbols(step, numbers, parameters, table, negative, counts, coded_bits(numbers, parameters))


def symbols_within(room: int, coefficients: Sorted, means: Tensor, threshold: float, guess: float | None) -> Symbols:
    """Return the symbols at about the smallest step whose body has at most ``room`` bytes.

    threshold: the candidates'; guess: where the search starts.
    """
    largest = max(_magnitude(coefficients.values), MEAN_STEPS * _magnitude(means), 1e-30)
    best: dict[float, Symbols] = {}

    def excess(level: float) -> float:
        tried = symbols(exp(level), coefficients, means)
        # Only the best is kept: a trial takes several times the memory of what it codes.
        if tried.size <= room and level < min(best, default=inf):
            best.clear()
            best[level] = tried
        return log(max(tried.size, 1) / room)

    start = guess or _step_for_room(room, coefficients) or largest
    lowest = log(max(threshold / (1 - ROUND_DOWN), largest * 2.0**-22))
    level = _smallest(excess, log(start), lowest)
    # At a step of several times the largest nothing is left but a bit a channel, which always fits.
    return best[level] if level < inf else symbols(8 * largest, coefficients, means)


def largest_step(
    error: float, energy: float, values: Tensor, means: Tensor, batch: int, threshold: float, guess: float | None
) -> float | None:
    """Return the largest step with error energy at most ``error``; None if it needs coefficients below the threshold.

    The step is a power of 2^(1/16), so that it hardly ever depends on the guess. energy: of all coefficients around the
    means, candidates or not; values: the candidates'; batch: examples that share the means, whose error counts in full.
    """
    sizes = values.abs()
    largest = max(_magnitude(sizes), MEAN_STEPS * _magnitude(means), 1e-30)

    def excess(number: int) -> float:
        step = 2 ** (number / STEPS_AN_OCTAVE)
        rounded = (sizes / step + ROUND_DOWN).floor_().mul_(step)
        # |y - rounded|^2 = |y|^2 - rounded (2 y - rounded); what is no candidate is rounded to 0.
        lost = energy - float(rounded.mul_(rounded.mul(-1).add_(sizes, alpha=2)).sum(dtype=torch.float64))
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
    if not len(coefficients.values):
        return 0.0
    count = max(1, min(len(coefficients.values), int(8 * room / bits)))
    return float(coefficients.values.abs().kthvalue(len(coefficients.values) - count + 1).values) / (1 - ROUND_DOWN)


def _unsigned(numbers: Tensor) -> Tensor:
    return torch.where(numbers > 0, 2 * numbers - 1, -2 * numbers)


def _magnitude(values: Tensor) -> float:
    return float(values.abs().max()) if len(values) else 0.0
