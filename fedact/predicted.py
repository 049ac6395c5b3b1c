"""What a segmentation run's models make of a few test pictures, before the first round and after the last one."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from fedact.config.errors import ConfigError
from fedact.data import Loader
from fedact.models.tasks import predicted
from fedact.prediction_plots import predictions
from fedact.storage.run import Run
from fedact.training.experiment import Experiment
from fedact.training.trained_model import trained_model, trained_tensors

PICTURES = 4
MOST_METHODS = 4


def predictions_of(run: Run) -> Figure:
    """Return pictures of the test set, their ground truth, and predictions before training and after each method.

    Of more methods than there is room for, the first; of several seeds the first. Raises ConfigError where the run's data
    or its checkpoints are gone.
    """
    methods = [str(method) for method in dict.fromkeys(run.rounds["method"])][:MOST_METHODS]
    experiment, _ = trained_model(run, methods[0])
    masks = experiment.test.masks
    if masks is None:
        raise ConfigError(f"{run.path}: its test pictures have no masks")
    chosen = chosen_pictures(experiment.test.labels)
    columns = {"before": predicted_masks(experiment, experiment.model_with({}), chosen)}
    for method in methods:
        model = experiment.model_with(trained_tensors(run, experiment, method))
        columns[f"after {method}"] = predicted_masks(experiment, model, chosen)
    return predictions(experiment.test.images[chosen], masks[chosen], columns, run.classes)


def chosen_pictures(labels: np.ndarray, most: int = PICTURES) -> np.ndarray:
    """Return positions: the first picture, the first of each frequent label, and where there are too few, others far apart.

    labels: int64 (examples,), the dominant class or the source of each.
    """
    _, firsts, counts = np.unique(labels, return_index=True, return_counts=True)
    frequent = firsts[np.argsort(-counts, kind="stable")]
    apart = np.linspace(0, len(labels) - 1, most).astype(int)
    found = dict.fromkeys(int(each) for each in [0, *frequent, *apart, *range(len(labels))])
    return np.array(sorted(list(found)[: min(most, len(labels))]))


@torch.no_grad()
def predicted_masks(experiment: Experiment, model: nn.Module, positions: np.ndarray) -> np.ndarray:
    """Return the most likely class of each pixel of some test pictures: uint8 (pictures, height, width), as the masks."""
    test = experiment.test
    assert test.masks is not None
    loader = Loader(test, experiment.preprocessing, experiment.config.device)
    found = []
    for position in positions:
        # One at a time: scores for every pixel are large.
        inputs, _ = loader(np.array([position]))
        classes = predicted(model(inputs), test.masks.shape[1:3])
        found.append(classes[0].to(torch.uint8).cpu().numpy())
    return np.stack(found)
