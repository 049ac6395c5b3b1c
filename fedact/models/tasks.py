"""The tasks, classification and segmentation: the loss of both, and their metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedact.config.errors import check_extra
from fedact.data import VOID
from fedact.models.pixel_loss import pixel_loss, scaled_up

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """A model's metrics on some examples.

    score: the accuracy, or the mean of class_iou over the classes with pixels, None where no pixel counts. loss: the mean
    over the examples. class_iou: by class, the intersection over union of its pixels, None for a class without; None in
    classification. class_scores: by class, its accuracy or its class_iou; None for a class without. class_examples: by
    class, how many examples or, in segmentation, pixels of it there are.
    """

    score: float | None
    loss: float
    class_iou: tuple[float | None, ...] | None = None
    class_scores: tuple[float | None, ...] = ()
    class_examples: tuple[int, ...] = ()


class Count(Protocol):
    """Accumulates a model's metrics, batch after batch."""

    def add(self, scores: Tensor, targets: Tensor) -> None: ...

    def join(self, later: Any) -> None:
        """Add the batches of another count, as if they had been added here."""

    def outcome(self) -> Outcome: ...


class ClassCount:
    """Counts the images of every class, and the correctly classified ones among them."""

    def __init__(self, classes: int) -> None:
        self.examples, self.right = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self.losses: list[float] = []

    def add(self, scores: Tensor, targets: Tensor) -> None:
        labels, found = targets.cpu().numpy(), scores.argmax(1).cpu().numpy()
        # Nobody need say how many classes there are: scores have a column for each.
        self.examples = self.examples + np.bincount(labels, minlength=scores.shape[1])
        self.right = self.right + np.bincount(labels[found == labels], minlength=scores.shape[1])
        self.losses.append(float(F.cross_entropy(scores, targets, reduction="sum")))

    def join(self, later: "ClassCount") -> None:
        self.examples, self.right = self.examples + later.examples, self.right + later.right
        # Each batch's by itself: so their sum has the same bits, however the batches were shared out.
        self.losses += later.losses

    def outcome(self) -> Outcome:
        examples, right = self.examples.tolist(), self.right.tolist()
        shares = tuple(own / each if each else None for own, each in zip(right, examples, strict=True))
        return Outcome(sum(right) / sum(examples), sum(self.losses) / sum(examples), None, shares, tuple(examples))


class PixelCount:
    """Counts the pixels of every class, as they are and as predicted."""

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import MulticlassJaccardIndex

        self.index: Any = MulticlassJaccardIndex(classes, average="none", ignore_index=VOID, zero_division=nan)
        self.examples = 0
        self.losses: list[float] = []

    def add(self, scores: Tensor, targets: Tensor) -> None:
        self.examples += len(targets)
        self.losses.append(float(pixel_loss.lean(scores, targets)) * len(targets))
        self.index.to(scores.device).update(pixel_classes(scores, targets.shape[1:]), targets)

    def join(self, later: "PixelCount") -> None:
        self.examples += later.examples
        self.losses += later.losses
        self.index.merge_state(later.index.to(self.index.device))

    def outcome(self) -> Outcome:
        class_iou = self.index.compute()
        values = tuple(None if isnan(value) else value for value in class_iou.tolist())
        score = None if all(value is None for value in values) else float(class_iou.nanmean())
        pixels = tuple(self.index.confmat.sum(1).tolist())
        return Outcome(score, sum(self.losses) / self.examples, values, values, pixels)


@dataclass(frozen=True)
class Task:
    """A task's evaluation.

    count: returns an empty ``Count`` for a number of classes. evaluation_batch: examples a batch of the evaluation.
    """

    count: Callable[[int], Count]
    evaluation_batch: int


TASKS = {"classification": Task(ClassCount, 128), "segmentation": Task(PixelCount, 4)}
"""The one table of tasks."""


class TaskLoss:
    """The mean cross-entropy of labels (examples,), or of the pixels of masks (examples, rows, columns)."""

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss from plain PyTorch, a scalar."""
        return pixel_loss(scores, targets) if targets.dim() == 3 else F.cross_entropy(scores, targets)

    def lean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the same loss, saving less for the backward pass."""
        return pixel_loss.lean(scores, targets) if targets.dim() == 3 else F.cross_entropy(scores, targets)


task_loss = TaskLoss()


def loss_under(lean: bool, loss: Loss) -> Loss:
    """Return the loss function, with ``lean`` its attribute ``lean`` (the same loss, saving less) where it has one."""
    memory_saving: Loss = getattr(loss, "lean", loss)
    return memory_saving if lean else loss


def check_task(name: str) -> None:
    """Raise ConfigError where the packages that a task needs are not installed."""
    if name == "segmentation":
        check_extra("segmentation", "--task segmentation")


def pixel_classes(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the predicted class of every pixel of masks of a size: (examples, *size)."""
    classes: Tensor = torch.argmax(scaled_up(scores, size), 1)
    return classes
