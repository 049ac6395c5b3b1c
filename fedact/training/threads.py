"""The number of compute threads: the same in every process of a run, and one for small batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedact.processes.threads import one_thread

SMALL_BATCH_PIXELS = 20_000
"""Up to here two threads were no faster than one on a quiet machine, up to 1.6 times slower, and hundreds on a busy one."""

DEFAULT_THREADS = 1
"""Of a client: a machine's other cores play other clients, and sums that are split among threads round otherwise."""


def use_threads(count: int | None) -> None:
    """Set this process's number of compute threads; None changes nothing."""
    if count is not None:
        torch.set_num_threads(count)


@contextmanager
def threads_for(x: Tensor) -> Iterator[None]:
    """Within this context, compute on one thread if a batch (N, C, ...) on the CPU has few pixels."""
    few = x.device.type == "cpu" and x.numel() <= SMALL_BATCH_PIXELS * (x.shape[1] if x.dim() > 1 else 1)
    if not few or torch.get_num_threads() == 1:
        # Setting a number takes as long as a small layer, even the same one.
        yield
        return
    with one_thread():
        yield
