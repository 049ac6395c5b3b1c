"""Evaluation: the metrics of a model on examples, counted in one process, or a portion of them in each of several."""

from math import nan

import numpy as np
import torch
from torch import nn

from fedact.models.micro_batch import scores_of
from fedact.models.tasks import TASKS, Count, Outcome
from fedact.nn.prefix.split import PrefixOutputs
from fedact.nn.streams.install import in_whole_maps
from fedact.training.local import Batches
from fedact.training.threads import threads_for

MOST_PORTIONS, FEWEST_BATCHES = 16, 2
"""Examples are shared out in so many portions at most, of so many batches at least: each is a message with the weights."""


def evaluate(model: nn.Module, batches: Batches, examples: int, task: str = "classification", classes: int = 0) -> Outcome:
    """Return the model's metrics on the examples, in eval mode; classes: their number, for segmentation.

    Of no examples there is no score.
    """
    if not examples:
        return Outcome(None, nan, None if task == "classification" else (None,) * classes)
    return counted(model, batches, examples, task, classes).outcome()


@torch.no_grad()
def counted(model: nn.Module, batches: Batches, examples: int, task: str, classes: int) -> Count:
    """Return the count of the examples, which can be joined with others'; arguments as for ``evaluate``.

    Blocks in streams run whole: that is faster, and no bytes are counted.
    """
    training, count, at_once = model.training, TASKS[task].count(classes), TASKS[task].evaluation_batch
    if training:
        model.eval()
    with in_whole_maps(model):
        for start in range(0, examples, at_once):
            x, y = batches(np.arange(start, min(start + at_once, examples)))
            with threads_for(x.values[0] if isinstance(x, PrefixOutputs) else x):
                count.add(scores_of(model, x), y)
    if training:
        model.train()
    return count


def portions(examples: int, task: str) -> list[np.ndarray]:
    """Return the positions of so many examples in portions of whole batches, the same however many processes there are.

    >>> [len(portion) for portion in portions(449, "classification")]
    [256, 193]
    """
    batch = TASKS[task].evaluation_batch
    each = batch * max(FEWEST_BATCHES, -(-examples // (batch * MOST_PORTIONS)))
    return [np.arange(start, min(start + each, examples)) for start in range(0, examples, each)]
