"""What is learned: how a task's loss is taken, how its answers are counted, and what its score is called."""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan
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
    """What a model is worth on some examples.

    score: the accuracy, or the mean of class_iou over the classes that are there. loss: the mean over the examples.
    class_iou: the intersection over the union of each class's pixels, None where there are neither; None without masks.
    """

    score: float
    loss: float
    class_iou: tuple[float | None, ...] | None = None


class Count(Protocol):
    """Counts a model's answers, batch after batch."""

    def add(self, scores: Tensor, targets: Tensor) -> None: ...

    def outcome(self) -> Outcome: ...


class ClassCount:
    """Counts the images whose class was found."""

    def __init__(self, classes: int) -> None:
        self.examples, self.right, self.loss = 0, 0, 0.0

    def add(self, scores: Tensor, targets: Tensor) -> None:
        self.examples += len(targets)
        self.right += int((scores.argmax(1) == targets).sum())
        self.loss += float(F.cross_entropy(scores, targets, reduction="sum"))

    def outcome(self) -> Outcome:
        return Outcome(self.right / self.examples, self.loss / self.examples)


class PixelCount:
    """Counts the pixels of each class."""

    def __init__(self, classes: int) -> None:
        from torchmetrics.classification import MulticlassJaccardIndex

        self.index: Any = MulticlassJaccardIndex(classes, average="none", ignore_index=VOID, zero_division=nan)
        self.examples, self.loss = 0, 0.0

    def add(self, scores: Tensor, targets: Tensor) -> None:
        self.examples += len(targets)
        self.loss += float(pixel_loss.lean(scores, targets)) * len(targets)
        self.index.to(scores.device).update(predicted(scores, targets.shape[1:]), targets)

    def outcome(self) -> Outcome:
        each = self.index.compute()
        mean = each.nanmean().nan_to_num()
        listed = tuple(None if value != value else value for value in each.tolist())
        return Outcome(float(mean), self.loss / self.examples, listed)


@dataclass(frozen=True)
class Task:
    """What is learned.

    count: counts a model's answers over so many classes. evaluation_batch: how many examples are evaluated at once.
    """

    count: Callable[[int], Count]
    evaluation_batch: int


TASKS = {"classification": Task(ClassCount, 128), "segmentation": Task(PixelCount, 4)}
"""The one table of tasks."""


class TaskLoss:
    """The cross-entropy of labels or, where the targets are masks, of every pixel."""

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss as plain PyTorch takes it."""
        return pixel_loss(scores, targets) if targets.dim() == 3 else F.cross_entropy(scores, targets)

    def lean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the same loss, holding less for the backward pass."""
        return pixel_loss.lean(scores, targets) if targets.dim() == 3 else F.cross_entropy(scores, targets)


task_loss = TaskLoss()


def loss_under(lean: bool, loss: Loss) -> Loss:
    """Return the loss as it is taken beside layers that keep less: in its lean form, where it has one."""
    own: Loss = getattr(loss, "lean", loss)
    return own if lean else loss


def check_task(name: str) -> None:
    """Raise ConfigError where what a task needs is not installed."""
    if name == "segmentation":
        check_extra("segmentation", "--task segmentation")


def predicted(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the class of every pixel."""
    found: Tensor = torch.argmax(scaled_up(scores, size), 1)
    return found
