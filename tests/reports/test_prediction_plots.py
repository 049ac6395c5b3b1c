"""Predictions beside the truth: the figures told are right, and a colour is a class, whoever looks at it."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from torch import nn

from fedact.config.errors import ConfigError
from fedact.data.masks import VOID
from fedact.reports.run import figures as plots
from fedact.reports.run import predictions as predicted
from fedact.reports.run.predictions import CLASS_COLORS, VOID_COLOR, class_color, mask_picture, mean_iou, predictions
from fedact.reports.style import png
from fedact.simulate import main
from fedact.storage.run import load_run
from fedact.training.trained_model import trained_model
from tests.support.records import write_run

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), table of
# severity 1.0, for linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
JUST_SEEN = 2.3
"""Distance in CIELAB that is just noticed."""


def seen(color: str, vision) -> np.ndarray:
    """Return a colour as CIELAB (white point D65), as it is seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(vision) @ linear, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION.values(), ids=VISION)
def test_every_class_has_a_colour_that_anybody_tells_from_all_others_and_from_void(vision):
    lab = [seen(color, vision) for color in (*CLASS_COLORS, VOID_COLOR, "white")]
    assert len(CLASS_COLORS) == 34
    assert min(float(np.linalg.norm(one - other)) for one, other in combinations(lab, 2)) > 4 * JUST_SEEN


masks = arrays(np.uint8, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 3, 4, VOID]))
ids = arrays(np.uint8, (2, 3, 4), elements=st.integers(0, 4))


@given(masks, ids)
def test_the_mean_iou_is_that_of_torchmetrics(truth, taken):
    found = mean_iou(truth, taken)
    if (truth == VOID).all():
        assert found is None
        return
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassJaccardIndex(num_classes=5, average="none", ignore_index=VOID)
    metric.update(torch.from_numpy(taken).long(), torch.from_numpy(truth).long())
    there = set(np.unique(truth[truth != VOID])) | set(np.unique(taken[truth != VOID]))
    assert found == pytest.approx(float(metric.compute()[sorted(map(int, there))].mean()), abs=1e-6)


def test_a_class_has_the_same_colour_in_every_figure_and_every_cell():
    truth = np.array([[[0, 1], [7, VOID]]], np.uint8)
    for columns in ({"before": truth}, {"before": np.full_like(truth, 7), "after vanilla": truth}):
        cells = predictions(np.zeros((1, 2, 2, 3), np.uint8), truth, columns).axes
        drawn = {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in cells}
        expected = np.rint(np.array([to_rgb(class_color(each)) for each in (0, 1, 7, VOID)]) * 255).reshape(2, 2, 3)
        assert np.array_equal(drawn["ground truth"], expected)
    assert (drawn["before\nmean IoU 11.1 %"] == expected[1, 0]).all()
    assert np.array_equal(drawn["after vanilla\nmean IoU 100.0 %"], expected)
    assert np.array_equal(mask_picture(truth[0]), expected)


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_names_the_classes_that_occur_and_no_others():
    truth, taken = np.array([[[0, 1], [1, 1]]], np.uint8), np.array([[[0, 3], [1, 1]]], np.uint8)
    images, names = np.zeros((1, 2, 2, 3), np.uint8), ["road", "sky", "car", "tree", "pole"]
    assert legend(predictions(images, truth, {"before": taken}, names)) == ["road", "sky", "tree"]
    truth[0, 0, 0] = VOID
    assert legend(predictions(images, truth, {"before": truth}, names)) == ["sky", "void"]
    assert legend(predictions(images, truth, {"before": taken})) == ["class 0", "class 1", "class 3", "void"]
    assert legend(predictions(images, truth, {"before": taken}, ["too", "few"])) == ["class 0", "class 1", "class 3", "void"]


@pytest.mark.parametrize("columns", [1, 6])
@pytest.mark.parametrize("frame", [(4, 24, 32), (1, 40, 20)])
def test_nothing_covers_anything_and_nothing_is_cut_off(columns, frame):
    random = np.random.default_rng(0)
    truth = random.integers(0, 34, frame, np.uint8)
    name = "after hosvd:variance=0.8,truncation=sequential,max_ranks=10x20x30x40 "
    drawn = {f"{name}{number}": random.integers(0, 34, frame, np.uint8) for number in range(columns)}
    figure = predictions(random.integers(0, 255, (*frame, 3), np.uint8), truth, drawn, [f"class {'x' * 60}"] * 34)
    png(figure)
    legend_box, cells = figure.legends[0].get_window_extent(), [axes.get_tightbbox() for axes in figure.axes]
    assert len(cells) == frame[0] * (columns + 2)
    assert not any(one.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98)) for one, other in combinations(cells, 2))
    for box in [*cells, legend_box]:
        assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1
    assert legend_box.y1 <= min(cell.y0 for cell in cells) + 1
    assert all(axes.get_window_extent().width > 100 for axes in figure.axes)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_chosen_pictures_are_the_first_and_as_many_labels_as_there_is_room_for(labels):
    chosen = predicted.picture_positions(np.array(labels))
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) == min(predicted.PICTURES, len(labels))
    assert len({labels[each] for each in chosen}) == min(predicted.PICTURES, len(set(labels)))


# A run's figure ------------------------------------------------------------------------------------------------------------


class Colours(nn.Module):
    """Gives each pixel the scores of the class whose colour it has: class 0 is red, 1 green, 2 blue; at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(torch.einsum("kc,bchw->bkhw", self.order, x), 2)


class Stand:
    """A workspace, and its experiment: six scenes in which each quarter has a class of its own, or none."""

    def __init__(self, masks: bool = True) -> None:
        quarters = np.random.default_rng(3).integers(0, 3, (6, 2, 3), np.uint8)
        truth = quarters.repeat(8, axis=1).repeat(8, axis=2)
        images = (np.eye(3, dtype=np.uint8) * 255)[truth]
        truth[:, 0] = VOID
        self.test = SimpleNamespace(images=images, labels=quarters[:, 0, 0].astype(int), masks=truth if masks else None)
        self.preprocessing = lambda images: torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        self.config = SimpleNamespace(device="cpu")
        self.experiment = self

    def model_with(self, tensors):
        model = Colours()
        model.load_state_dict({"order": torch.eye(3).roll(1, 0), **tensors})
        return model


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose first method learned the colours and whose second did not."""
    found = {"vanilla": {"order": torch.eye(3)}, "hosvd": {}}
    monkeypatch.setattr(predicted, "trained_model", lambda run, method: (Stand(), None))
    monkeypatch.setattr(predicted, "trained_tensors", lambda run, experiment, method: found[method])
    header = {"classes": ["red", "green", "blue"]}
    return load_run(write_run(tmp_path / "run", methods=list(found), config={"task": "segmentation"}, header=header))


def test_a_runs_figure_shows_the_models_before_and_after(run):
    figure = plots.predictions_of_run(run)
    titles = [axes.get_title() for axes in figure.axes[:5]]
    assert titles[:2] == ["picture", "ground truth"]
    assert [title.split("\n")[0] for title in titles[2:]] == ["before", "after vanilla", "after hosvd"]
    before, learned, nothing = (float(title.split("mean IoU ")[1].removesuffix(" %")) for title in titles[2:])
    assert learned > 90
    assert before == nothing < 10
    assert set(legend(figure)) <= {"red", "green", "blue", "void"}


def test_a_segmentation_run_has_this_figure_and_a_classifiers_has_not(run, tmp_path):
    assert set(plots.figure_files(run, tmp_path)) == {"accuracy", "memory", "predictions"}
    other = load_run(write_run(tmp_path / "other"))
    assert set(plots.figure_files(other, tmp_path)) == {"accuracy", "memory"}


def test_a_figure_that_cannot_be_drawn_leaves_the_others_and_is_told(run, tmp_path, monkeypatch):
    def gone(*_):
        raise ConfigError("the data\nis gone")

    monkeypatch.setattr(predicted, "trained_model", gone)
    assert plots.save_figures(run, tmp_path) == {"predictions": "the data is gone"}
    assert (tmp_path / "accuracy.png").exists()
    assert not (tmp_path / "predictions.png").exists()


def test_test_pictures_without_masks_are_refused(run, monkeypatch):
    monkeypatch.setattr(predicted, "trained_model", lambda run, method: (Stand(masks=False), None))
    with pytest.raises(ConfigError, match="no masks"):
        plots.predictions_of_run(run)


TINY = [
    "--task", "segmentation", "--dataset", "synthetic", "--model", "pspnet_mobilenet_v2", "--weights", "none",
    "--layers", "1", "--resolution", "32", "--max-examples", "60", "--max-test-examples", "10", "--clients", "2",
    "--rounds", "1", "--lr", "0.1", "--budget", "none", "--method", "exact",
]  # fmt: skip


@pytest.mark.slow
def test_what_is_shown_of_a_run_is_what_its_records_tell(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 0
    assert {"class_iou.png", "predictions.png"} <= {file.name for file in (tmp_path / "run").iterdir()}
    run = load_run(tmp_path / "run")
    workspace, model = trained_model(run)
    experiment = workspace.experiment
    everything = np.arange(len(experiment.test))
    for after in (1, 0):
        taken = predicted.predicted_masks(experiment, model, everything)
        told = run.rounds.loc[run.rounds["round"] == after, "accuracy"].item()
        assert mean_iou(experiment.test.masks[everything], taken) == pytest.approx(told, abs=1e-6)
        model = workspace.model_with({})
