"""How many threads compute: the same number in every process of a run, and one where a step is small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FEW_PIXELS = 20_000
"""Up to here two threads were no faster than one on a quiet machine, up to 1.6 times slower, and hundreds on a busy one."""

MOST_THREADS = 4
"""A client's batches gain little from more."""


def default_threads() -> int:
    """Return how many threads a client computes with where none are given: torch's own number, at most 4."""
    return min(MOST_THREADS, torch.get_num_threads())


def use_threads(count: int | None) -> None:
    """Compute with so many threads in this process from now on; None changes nothing."""
    if count is not None:
        torch.set_num_threads(count)


@contextmanager
def threads_for(x: Tensor) -> Iterator[None]:
    """Run on one thread where a batch of images (N, C, ...) has few pixels, on as many as before otherwise."""
    before = torch.get_num_threads()
    few = x.device.type == "cpu" and x.numel() <= FEW_PIXELS * (x.shape[1] if x.dim() > 1 else 1)
    torch.set_num_threads(1 if few else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
