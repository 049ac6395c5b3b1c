"""The tasks, classification and segmentation: the loss of both, and their metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Protocol

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
    classification.
    """

    score: float | None
    loss: float
    class_iou: tuple[float | None, ...] | None = None


class Count(Protocol):
    """Accumulates a model's metrics, batch after batch."""

    def add(self, scores: Tensor, targets: Tensor) -> None: ...

    def outcome(self) -> Outcome: ...


class ClassCount:
    """Counts the correctly classified images."""

    def __init__(self, classes: int) -> None:
        self.examples, self.right, self.loss = 0, 0, 0.0

    def add(self, scores: Tensor, targets: Tensor) -> None:
        self.examples += len(targets)
        self.right += int((scores.argmax(1) == targets).sum())
        self.loss += float(F.cross_entropy(scores, targets, reduction="sum"))

    def outcome(self) -> Outcome:
        return Outcome(self.right / self.examples, self.loss / self.examples)


class PixelCount:
    """Counts the pixels of every class, as they are and as predicted."""

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import MulticlassJaccardIndex

        self.index: Any = MulticlassJaccardIndex(classes, average="none", ignore_index=VOID, zero_division=nan)
        self.examples, self.loss = 0, 0.0

    def add(self, scores: Tensor, targets: Tensor) -> None:
        self.examples += len(targets)
        self.loss += float(pixel_loss.lean(scores, targets)) * len(targets)
        self.index.to(scores.device).update(pixel_classes(scores, targets.shape[1:]), targets)

    def outcome(self) -> Outcome:
        class_iou = self.index.compute()
        values = tuple(None if isnan(value) else value for value in class_iou.tolist())
        nothing = all(value is None for value in values)
        return Outcome(None if nothing else float(class_iou.nanmean()), self.loss / self.examples, values)


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
