"""A figure of test pictures with their true and predicted segmentation masks."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from torch import nn

from fedact.config.baselines import LOCAL, baseline_of
from fedact.config.errors import ConfigError
from fedact.data import Loader
from fedact.data.masks import VOID
from fedact.models.tasks import pixel_classes
from fedact.reports.method_label import method_label
from fedact.reports.run.class_figure import class_names
from fedact.reports.safe_text import figure_label, wrapped
from fedact.reports.style import PERCENT, heading
from fedact.storage.run import Run
from fedact.training.experiment import Experiment
from fedact.training.trained_model import trained_model, trained_tensors

VOID_COLOR = "#B0B0B0"
CLASS_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#3C0F2D", "#8700F0", "#000F78", "#690F00",
    "#00FF87", "#873C69", "#E1004B", "#8769F0", "#B4E1B4", "#5A2D78", "#1E3CB4", "#A51E00", "#4B693C", "#C3A54B", "#78C378",
    "#2D0F4B", "#FFC3F0", "#B487FF", "#C300A5", "#4B000F", "#781E3C", "#D2F069", "#E1D2D2", "#5A961E", "#4B00C3", "#FF78E1",
    "#D20087",
)  # fmt: skip
"""Okabe and Ito's, then those farthest from all before in CIELAB, seen with full or with any kind of dichromatic vision."""
WIDTH = 2.4
"""Of a picture, in inches."""
LINE_HEIGHT, LEGEND_LINE = 0.16, 0.2
TITLE_LETTERS, NAME_LETTERS = 28, 24
LETTERS_AN_INCH = 11
BESIDE = 7
"""Letters that a colour in the legend and its distance to the next take the room of."""


def predictions(
    images: np.ndarray, truth: np.ndarray, columns: Mapping[str, np.ndarray], names: Sequence[str] | None = None
) -> Figure:
    """Return a row for each picture: it, its ground truth, and each column's prediction, with the column's mean IoU.

    images: uint8 (pictures, height, width, 3). truth: uint8 (pictures, height, width), a class id a pixel, VOID for none.
    columns: by title, as truth. names: of the classes, where they are known.
    """
    classes = [int(number) for number in np.unique([truth, *columns.values()]) if number != VOID]
    names = class_names(names, max(len(names or ()), max(classes, default=0) + 1))
    titles = ["picture", "ground truth"]
    for title, masks in columns.items():
        score = mean_iou(truth, masks)
        text = "mean IoU -" if score is None else f"mean IoU {PERCENT * score:.1f} %"
        titles.append(f"{wrapped(figure_label(title), TITLE_LETTERS)}\n{text}")
    legend = [Patch(color=class_color(number), label=figure_label(names[number], NAME_LETTERS)) for number in classes]
    if (truth == VOID).any():
        legend.append(Patch(color=VOID_COLOR, label="void"))
    figure, cells = _cells(images.shape[:3], titles, legend)
    for row, (image, true) in zip(cells, zip(images, truth, strict=True), strict=True):
        row[0].imshow(image)
        row[1].imshow(mask_picture(true), interpolation="nearest")
    for place, masks in enumerate(columns.values(), start=2):
        for row, mask in zip(cells, masks, strict=True):
            row[place].imshow(mask_picture(mask), interpolation="nearest")
    return figure


def class_color(number: int) -> str:
    """Return the colour of a class: the same in every figure."""
    return VOID_COLOR if number == VOID else CLASS_COLORS[number % len(CLASS_COLORS)]


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """Return a mask as a picture: uint8 (height, width) to uint8 (height, width, 3)."""
    colors = np.array([to_rgb(class_color(number)) for number in range(VOID + 1)])
    picture: np.ndarray = np.rint(colors[mask] * 255).astype(np.uint8)
    return picture


def mean_iou(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """Return the mean intersection over union of the classes that are there or were taken to be there, None where none is.

    Both: uint8 of one shape, a class id a pixel; what is VOID in truth counts for nothing.
    """
    true, taken = (mask[truth != VOID].astype(np.int64) for mask in (truth, predicted))
    both = np.bincount(true[true == taken], minlength=VOID + 1)
    either = np.bincount(true, minlength=VOID + 1) + np.bincount(taken, minlength=VOID + 1) - both
    return float((both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else None


def _cells(shape: tuple[int, ...], titles: Sequence[str], legend: Sequence[Patch]) -> tuple[Figure, np.ndarray]:
    """Return a figure with a title and a legend, and its axes (pictures, columns) for pictures of one shape."""
    rows, height, width = shape
    whole = WIDTH * len(titles)
    longest = max((len(str(patch.get_label())) for patch in legend), default=1)
    columns = max(1, int(whole * LETTERS_AN_INCH) // (longest + BESIDE))
    lines = max(title.count("\n") + 1 for title in titles)
    below = LEGEND_LINE * -(-len(legend) // columns)
    whole_height = rows * WIDTH * height / width + LINE_HEIGHT * lines + below + 0.6
    close = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure((whole, whole_height), layout=close)
    cells = figure.subplots(rows, len(titles), squeeze=False)
    for axes, title in zip(cells[0], titles, strict=True):
        axes.set_title(title, fontsize=8.5)
    for axes in cells.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    heading(figure, "Predictions on test pictures (mean IoU: of the pictures shown)")
    figure.legend(handles=list(legend), loc="outside lower left", ncols=columns, frameon=False, fontsize=8.5)
    return figure, cells


PICTURES = 4
MOST_METHODS = 4


def predictions_of(run: Run) -> Figure:
    """Return pictures of the test set, their ground truth, and predictions before training and after each method.

    Of more methods than there is room for, the first; of several seeds the first. Raises ConfigError where the run's data
    or its checkpoints are gone.
    """
    named = [str(method) for method in dict.fromkeys(run.rounds["method"])]
    methods = [method for method in named if baseline_of(method) != LOCAL][:MOST_METHODS]
    workspace, _ = trained_model(run, methods[0])
    experiment = workspace.experiment
    masks = experiment.test.masks
    if masks is None:
        raise ConfigError(f"{run.path}: its test pictures have no masks")
    chosen = picture_positions(experiment.test.labels)
    columns = {"before": predicted_masks(experiment, workspace.model_with({}), chosen)}
    for method in methods:
        model = workspace.model_with(trained_tensors(run, experiment, method))
        columns[f"after {method_label(method)}"] = predicted_masks(experiment, model, chosen)
    return predictions(experiment.test.images[chosen], masks[chosen], columns, run.classes)


def picture_positions(labels: np.ndarray, most: int = PICTURES) -> np.ndarray:
    """Return positions: the first picture, the first of each frequent label, and where there are too few, others far apart.

    labels: int64 (examples,), the dominant class or the source of each.
    """
    _, firsts, counts = np.unique(labels, return_index=True, return_counts=True)
    frequent = firsts[np.argsort(-counts, kind="stable")]
    apart = np.linspace(0, len(labels) - 1, most).astype(int)
    places = dict.fromkeys(int(place) for place in [0, *frequent, *apart, *range(len(labels))])
    return np.array(sorted(list(places)[: min(most, len(labels))]))


@torch.no_grad()
def predicted_masks(experiment: Experiment, model: nn.Module, positions: np.ndarray) -> np.ndarray:
    """Return the most likely class of each pixel of some test pictures: uint8 (pictures, height, width), as the masks."""
    test = experiment.test
    assert test.masks is not None
    loader = Loader(test, experiment.preprocessing, experiment.config.device)
    masks = []
    for position in positions:
        # One at a time: scores for every pixel are large.
        inputs, _ = loader(np.array([position]))
        classes = pixel_classes(model(inputs), test.masks.shape[1:3])
        masks.append(classes[0].to(torch.uint8).cpu().numpy())
    return np.stack(masks)
