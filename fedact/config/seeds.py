"""Every random number of a run comes from (seed, round, client, purpose), never from a global generator."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for; two purposes never share one."""

    DATA = 0
    HALVES = 1
    PARTITION = 2
    HOLD_OUT = 3
    CALIBRATION = 4
    BUDGETS = 5
    PRETRAINING = 6
    INITIAL_WEIGHTS = 7
    CLIENT_SAMPLE = 8
    LOCAL_TRAINING = 9
    METHOD = 10
    FAULTS = 11
    PRIVACY = 12
    AUGMENTATION = 13
    TRIAL = 14


def generator(seed: int, purpose: Purpose, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the generator of one purpose of one client in one round."""
    return np.random.default_rng(np.random.SeedSequence([seed, round, client, int(purpose)]))


@contextmanager
def torch_seed(seed: int, purpose: Purpose) -> Iterator[None]:
    """Seed torch's generator for code that takes no generator (module constructors), and put it back after."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(int(generator(seed, purpose).integers(2**62)))
        yield


@contextmanager
def numpy_seed(random: np.random.Generator) -> Iterator[None]:
    """Seed numpy's global generator for code that takes no other, and put its state back after."""
    state = np.random.get_state()
    np.random.seed(random.integers(2**32, size=8))
    try:
        yield
    finally:
        np.random.set_state(state)
