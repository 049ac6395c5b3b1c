"""What a trial found: a candidate's losses on held-out examples, by which candidates are compared one example at a time."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from fedact.models.tasks import task_loss

TEMPERATURES = tuple(2.0 ** (power / 2) for power in range(-2, 9))
"""Scores are divided by the best of these before their loss is taken, so that it tells what was learned, not how loudly."""
WORST_LOSS = 1e3
"""The loss of what diverged."""
DOUBT = 1.0
"""A candidate is clearly better from so many standard errors of the paired difference of the examples' losses."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """A candidate after its trial; ``finished`` is False where it was ended early.

    first_loss: the mean loss of the clients' steps in the first round. losses: of every example after the last, while
    it was held out, at the best temperature; NaN where it was not judged. score: the accuracy on these.
    """

    layers: int
    lr: float
    first_loss: float
    losses: np.ndarray
    score: float
    finished: bool = True

    @property
    def loss(self) -> float:
        """The mean loss over the examples that were judged."""
        return float(np.nanmean(self.losses))


def clearly_better(one: Judgement, other: Judgement) -> bool:
    """Tell whether one's held-out loss is less than the other's by more than its standard error, example by example."""
    difference = one.losses - other.losses
    difference = difference[~np.isnan(difference)]
    return float(difference.mean()) < -DOUBT * float(difference.std(ddof=1)) / sqrt(len(difference))


def tempered_losses(scores: Tensor, targets: Tensor) -> np.ndarray:
    """Return each example's loss, the scores divided by the temperature that makes the losses' mean the least.

    scores: (examples, ...), as the model's output. What is not finite has the loss ``WORST_LOSS``.
    """
    found = []
    for temperature in TEMPERATURES:
        pairs = zip(torch.split(scores / temperature, 1), torch.split(targets, 1), strict=True)
        losses = np.array([float(task_loss(one, target)) for one, target in pairs])
        found.append(finite(losses))
    best: np.ndarray = min(found, key=lambda losses: float(losses.mean()))
    return best


def finite(losses: np.ndarray) -> np.ndarray:
    """Return losses with ``WORST_LOSS`` in place of more, and of what is no number."""
    bounded: np.ndarray = np.minimum(np.nan_to_num(losses, nan=WORST_LOSS), WORST_LOSS)
    return bounded
