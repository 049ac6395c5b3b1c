"""From images to bytes: the coefficients that matter, the step, the symbols."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import levels_end, write
from fedact.compression.transform.coefficients import (
    Threshold,
    above_threshold,
    collect_candidates,
    error_threshold,
    in_ledger,
    size_threshold,
    sort,
)
from fedact.compression.transform.cosine import Frequencies, chunks, transform
from fedact.compression.transform.step_size import (
    PASSING_BYTES,
    ROUND_DOWN,
    largest_step,
    symbols,
    symbols_within,
    threshold_near,
)

SEARCHED_BYTES, SORTED_BYTES, TRIED_BYTES = 24, 37, 12
"""Of numpy's memory at most, for a candidate while the step is searched, in sorting, and while it is tried at a step."""
LEAST_USE = 0.85
"""Of the room, that a step near the last batch's must use; below, the step is searched from the start."""


class Target(NamedTuple):
    """What bytes are to be: share: of the energy, that may be lost; None fills the room. room: bytes of the body at most."""

    share: float | None
    room: int


def encode(
    images: Tensor, means: Float[Tensor, " channels"], by: Frequencies, target: Target, last: float
) -> tuple[UInt8[Tensor, " bytes"], float]:
    """Return the bytes of images and their step: near the last one where that serves; last: 0 for none.

    means: the channels', scaled like a coefficient.
    """
    zero: Threshold = lambda _: 0.0  # noqa: E731
    if target.share is None:
        threshold = size_threshold(8 * target.room, images.numel())
    else:
        threshold = error_threshold(target.share, float(means.square().mean()) / prod(images.shape[1:3]))
    tries = [(threshold_near(last), last)] if last else []
    tries += [(threshold, 0.0), (zero, 0.0)]
    trials = (_trial(images, means, by, target, *each) for each in tries)
    return next(trial for trial in trials if trial)


def _trial(
    images: Tensor, means: Tensor, by: Frequencies, target: Target, threshold: Threshold, guess: float
) -> tuple[UInt8[Tensor, " bytes"], float] | None:
    """Return the bytes and their step; None where the threshold is too high."""
    candidates = collect_candidates(_coefficients(images, means, by), threshold)
    of_channels, step = means.cpu().numpy(), None
    if target.share is not None:
        numpys = in_ledger(SEARCHED_BYTES * len(candidates.values))
        error = target.share * (candidates.energy + images.shape[0] * float(of_channels @ of_channels))
        step = largest_step(error, candidates, of_channels, images.shape[0], guess)
        if step is None and candidates.threshold > 0:
            return None
        if step:
            candidates = above_threshold(step * (1 - ROUND_DOWN), candidates)
        del numpys
    numpys = in_ledger(SORTED_BYTES * len(candidates.values))
    ordered, levels = sort(candidates, of_channels, by.rings, images.shape[0])
    lowest = candidates.threshold
    del candidates, numpys
    numpys = in_ledger(TRIED_BYTES * len(ordered.values))
    coded = symbols(step, ordered) if step else None
    if coded is None or coded.size > target.room:
        coded = symbols_within(target.room, ordered, lowest, step or guess)
        if guess and coded.size < LEAST_USE * target.room:
            return None
    body = target.room if target.share is None else coded.size
    packed = torch.zeros(levels_end(*map(len, levels)) + body, dtype=torch.uint8)
    del ordered
    passing = in_ledger(PASSING_BYTES * len(coded.gaps))
    write(coded, levels, packed.numpy())
    del numpys, passing
    return packed.to(images.device), coded.step


def _coefficients(images: Tensor, means: Float[Tensor, " channels"], by: Frequencies) -> Iterator[Tensor]:
    """Yield the weighted coefficients of a few images at a time, without the channels' means, each in the same memory."""
    space: Tensor | None = None
    for chunk in chunks(images):
        space = torch.empty_like(chunk) if space is None else space[: chunk.shape[0]]
        # A map of one position is its own coefficient, and must stay as it is.
        coefficients = transform(chunk, by, out=space) if by.forward else space.copy_(chunk)
        coefficients[:, 0, 0] -= means
        yield coefficients
