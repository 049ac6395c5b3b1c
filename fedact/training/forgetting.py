"""What a model's score on the test set is made of: the classes that clients hold, and those that none of them holds."""

import numpy as np

from fedact.models.tasks import Outcome


def client_accuracy(outcome: Outcome, held: np.ndarray) -> float | None:
    """Return a model's score on the classes that clients hold.

    Classification: the accuracy of each class, weighted by the clients' number of examples of it; a class of which there is
    no test example has no accuracy, and the others' weights are scaled to sum to one. Segmentation: the mean IoU over the
    classes of which clients hold a pixel. None where no such class has a score.
    outcome: on the test examples. held: by class, how many examples, or pixels, all clients hold together.

    >>> outcome = Outcome(0.5, 1.0, None, (1.0, 0.5, 0.0, None), (10, 10, 10, 0))
    >>> client_accuracy(outcome, np.array([30, 10, 0, 60]))
    0.875
    """
    return _mean(outcome, held if outcome.class_iou is None else held > 0)


def unheld_accuracy(outcome: Outcome, held: np.ndarray) -> float | None:
    """Return a model's score on the classes that no client holds; None where no such class is among the test examples.

    Classification: the accuracy on the test examples of these classes. Segmentation: their mean IoU. How far it has fallen
    since round 0 is what the clients' training made the model forget. Arguments as for ``client_accuracy``.

    >>> outcome = Outcome(0.5, 1.0, None, (1.0, 0.5, 0.0, None), (10, 30, 10, 0))
    >>> unheld_accuracy(outcome, np.array([5, 0, 0, 0]))
    0.375
    """
    examples = np.array(outcome.class_examples) * (held == 0)
    return _mean(outcome, examples if outcome.class_iou is None else examples > 0)


def forgotten(before: float | None, now: float | None) -> float | None:
    """Return the fall of ``unheld_accuracy`` since round 0, a share: above 0 is forgotten, below 0 was gained."""
    return None if before is None or now is None else before - now


def _mean(outcome: Outcome, weights: np.ndarray) -> float | None:
    """Return the weighted mean of the classes' scores, None where no class with a weight has one."""
    scores = np.array([np.nan if score is None else score for score in outcome.class_scores])
    counted = np.where(np.isnan(scores), 0, weights)
    return float(np.nansum(scores * counted) / counted.sum()) if counted.any() else None
