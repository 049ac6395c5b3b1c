"""The whole way with masks: a class for every pixel, under every method and within the budget."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import fedact
from fedact.compare import main as compare
from fedact.config.loading import make_config
from fedact.federation import client
from fedact.models import make_model
from fedact.models.tasks import Outcome
from fedact.nn.surgery import head
from fedact.plan import main as plan
from fedact.simulate import main
from fedact.storage import checkpoints
from fedact.training.workspace import prepare
from tests.support.paths import NOTEBOOKS
from tests.support.runs import rows, timeless
from tests.support.scene_sets import halves, paint, write_cityscapes, write_folder, write_mask, write_voc

pytest.importorskip("segmentation_models_pytorch")

SCENES = [
    "--task", "segmentation", "--weights", "none", "--max-examples", "40", "--max-test-examples", "12", "--resolution", "40",
    "--clients", "3", "--rounds", "2", "--layers", "5", "--batch-size", "4", "--calibration", "8", "--local-epochs", "1",
    "--threads", "1", "--cache-size", "none", "--scope", "saved",
]  # fmt: skip
BUDGET = 600_000
SLOW = ("hosvd", "transform", "auto")
EXHAUSTIVE = ("exact", "svd", "asi", "gradient_filter", "quantize", "checkpoint", "topk")
METHODS = [pytest.param(method, marks=pytest.mark.slow) for method in SLOW]
METHODS += [pytest.param(method, marks=pytest.mark.exhaustive) for method in EXHAUSTIVE]


def scenes_config(**settings):
    return make_config({
        "task": "segmentation", "weights": "none", "max_examples": 40, "max_test_examples": 12, "resolution": 40,
        "clients": 3, "batch_size": 4, "calibration": 8, "threads": 1, **settings,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of two methods."""
    folder = tmp_path_factory.mktemp("scenes") / "run"
    methods = ["--method", "exact", "--method", "hosvd:variance=0.9"]
    assert main([*SCENES, "--budget", f"{BUDGET}:2,none:1", *methods, "--out", str(folder)]) == 0
    return folder


def test_a_client_whose_held_out_pixels_are_all_void_has_no_score_and_is_not_the_worst(tmp_path, monkeypatch):
    real = client.evaluate

    calls = []

    def void_at_first(*arguments):
        calls.append(real(*arguments))
        return calls[-1] if len(calls) > 1 else Outcome(None, 0.0, (None,) * 5)

    monkeypatch.setattr(client, "evaluate", void_at_first)
    given = [*SCENES, "--layers", "0", "--rounds", "1", "--method", "exact"]
    assert main([*given, "--out", str(tmp_path / "run")]) == 0
    *clients, last = [row for row in rows(tmp_path / "run")[1:] if row["round"] == 1]
    assert clients[0]["accuracy"] is None
    scores = [row["accuracy"] for row in clients[1:]]
    assert {row["status"] for row in clients} == {"head-only"}
    assert last["worst_client_accuracy"] == min(scores) > 0
    assert compare([str(tmp_path / "run"), "--out", str(tmp_path / "compared")]) == 0


def test_the_score_is_the_mean_of_the_classes_that_are_there(run_folder):
    header, *others = rows(run_folder)
    assert header["classes"] == ["ground", "disc", "box", "diamond", "cushion"]
    for row in others:
        known = [share for share in row["class_iou"] if share is not None]
        assert len(row["class_iou"]) == 5
        assert all(0 <= share <= 1 for share in known)
        assert row["accuracy"] == pytest.approx(np.mean(known), abs=1e-6)


def test_every_step_holds_its_budget_and_no_budget_costs_more(run_folder):
    clients = fedact.load_run(run_folder).clients
    assert set(clients["status"]) == {"ok"}
    bound = clients[clients["budget_bytes"].notna()]
    assert (bound["saved_bytes"] <= BUDGET).all()
    free = clients[clients["budget_bytes"].isna() & (clients["method"] == "exact")]
    assert free["saved_bytes"].min() > BUDGET


def test_a_run_leaves_figures_of_classes_and_of_predictions(run_folder):
    assert {"class_iou.png", "predictions.png", "accuracy.png"} <= {path.name for path in run_folder.iterdir()}


def test_a_run_that_is_resumed_equals_one_that_is_not(run_folder, tmp_path):
    folder = tmp_path / "run"
    methods = ["--method", "exact", "--method", "hosvd:variance=0.9"]
    assert main([*SCENES, "--budget", f"{BUDGET}:2,none:1", *methods[:2], "--out", str(folder)]) == 0
    assert main([*SCENES, "--budget", f"{BUDGET}:2,none:1", *methods, "--out", str(folder)]) == 0
    assert timeless(folder) == timeless(run_folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_five_layers_within_a_budget(method, tmp_path):
    settings = ["--budget", str(BUDGET), "--rounds", "1", "--method", method, "--out", str(tmp_path / "run")]
    assert main([*SCENES, *settings]) == 0
    clients = fedact.load_run(tmp_path / "run").clients
    assert set(clients["status"]) == {"ok"}
    assert set(clients["trained_layers"]) == {5}
    assert (clients["saved_bytes"] <= BUDGET).all()


def test_crops_and_flips_follow_from_the_seed(tmp_path):
    drawn = [*SCENES, "--budget", "none", "--method", "exact", "--crop", "32", "--flip", "--rounds", "1"]
    for name in ("one", "other"):
        assert main([*drawn, "--out", str(tmp_path / name)]) == 0
    assert timeless(tmp_path / "one") == timeless(tmp_path / "other")
    plans = json.loads((tmp_path / "one" / "plans.json").read_text())["exact"]["none"]
    # The head's input: a crop of 32 pixels at an eighth.
    assert plans["kept"][-1]["shape"][-2:] == [4, 4]


def test_scenes_are_dealt_by_where_they_come_from_if_asked_to():
    by_class, by_source = (prepare(scenes_config(partition_by=name)).experiment for name in ("class", "source"))
    assert len(np.unique(by_class.train.labels)) == 5
    assert len(np.unique(by_source.train.labels)) == 4
    assert np.array_equal(np.asarray(by_class.train.masks).shape, np.asarray(by_source.train.masks).shape)


def test_the_head_alone_is_fitted_first():
    before, after = (prepare(scenes_config(head_epochs=count)) for count in (0, 3))
    starts = [workspace.experiment.start for workspace in (before, after)]
    changed = {name for name, tensor in starts[0].items() if not torch.equal(tensor, starts[1][name])}
    (name,) = head(after.model)
    assert changed == {f"{name}.weight", f"{name}.bias"}


def test_pretraining_goes_on_from_given_weights_and_leaves_a_better_model(tmp_path):
    config = {"pretrain_epochs": 2, "weights": "pretrain", "max_examples": 60}
    first = prepare(scenes_config(**config)).experiment
    checkpoints.save(tmp_path / "start.safetensors", first.start)
    second = prepare(scenes_config(**config, pretrain_from=str(tmp_path / "start.safetensors"))).experiment
    assert second.config.pretrain_from == str(tmp_path / "start.safetensors")
    assert any(not torch.equal(tensor, second.start[name]) for name, tensor in first.start.items())


def test_an_encoder_that_a_classifier_learned_stays_while_the_rest_is_pretrained(tmp_path):
    classifier = make_model("mobilenet_v2", 10, 1.0).state_dict()
    checkpoints.save(tmp_path / "classifier.safetensors", classifier)
    start = prepare(
        scenes_config(
            weights="pretrain", max_examples=60, pretrain_epochs=1, pretrain_from=str(tmp_path / "classifier.safetensors")
        )
    ).experiment.start
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in start.items() if name.startswith("encoder.")}
    assert encoder.keys() == {name for name in classifier if not name.startswith("classifier.")}
    assert all(torch.equal(tensor, classifier[name]) for name, tensor in encoder.items())
    norm = start["decoder.conv.1.num_batches_tracked"]
    assert norm > 0


def test_a_plan_is_made_for_pixels(tmp_path, capsys):
    settings = ["--task", "segmentation", "--weights", "none", "--max-examples", "30", "--resolution", "40", "--layers", "5"]
    file = tmp_path / "plan.json"
    assert plan([*settings, "--batch-size", "4", "--budget", "600KB", "--json", str(file)]) == 0
    assert "segmentation_head.0" in capsys.readouterr().out
    assert json.loads(file.read_text())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "mobilenet_v2"}, "unknown segmentation model 'mobilenet_v2'"),
        ({"model": "pspnet_resnet"}, "did you mean 'pspnet_resnet18'"),
        ({"dataset": "cifar10"}, "unknown data set 'cifar10'"),
        ({"crop": 41}, "--crop 41 is more than the 40 pixels"),
        ({"layers": 99}, "convolutions"),
        ({"pretrain_from": "imagenet"}, "--pretrain-from is for --weights pretrain"),
        ({"width": 0.5}, "has one width"),
        ({"void": 3}, "--void 3 is for the masks of --task segmentation --dataset folder"),
        ({"void": 3, "dataset": "voc2012"}, "not for --task segmentation --dataset voc2012"),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_one_line(settings, words):
    with pytest.raises(fedact.config.errors.ConfigError) as raised:
        prepare(scenes_config(**settings))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "pspnet_resnet18"}, "--model pspnet_resnet18 is for --task segmentation, not for --task classification"),
        ({"dataset": "voc2012"}, "--dataset voc2012 is for --task segmentation, not for --task classification"),
        ({"partition_by": "source"}, "--partition-by source is for --task segmentation, not for --task classification"),
        ({"void": 0}, "--void 0 is for the masks of --task segmentation --dataset folder, not for --task classification"),
    ],
)
def test_what_is_for_masks_is_refused_without_them(settings, words):
    with pytest.raises(fedact.config.errors.ConfigError) as raised:
        prepare(make_config(settings))
    assert words in str(raised.value)


@pytest.mark.parametrize("part", ["", "train"])
def test_images_and_masks_are_no_classes_to_tell_apart(part, tmp_path):
    write_folder(tmp_path)
    with pytest.raises(
        fedact.config.errors.ConfigError, match="holds images and masks, which --task segmentation learns from"
    ):
        prepare(make_config({"dataset": "folder", "data_dir": str(tmp_path / part)}))


def test_weights_of_another_network_are_refused_by_the_setting_that_named_them(tmp_path):
    file = tmp_path / "other.safetensors"
    checkpoints.save(file, make_model("resnet18", 10).state_dict())
    for settings, flag in (({}, "--weights"), ({"weights": "pretrain"}, "--pretrain-from")):
        key = flag[2:].replace("-", "_")
        with pytest.raises(fedact.config.errors.ConfigError, match=f"^{flag} .* belong to another model"):
            prepare(scenes_config(**{"max_examples": 60, **settings, key: str(file)}))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr("fedact.config.errors.find_spec", lambda name: None)
    with pytest.raises(fedact.config.errors.ConfigError, match="needs the extra segmentation"):
        prepare(scenes_config())


ALONE = [
    "--task", "segmentation", "--weights", "none", "--resolution", "40", "--clients", "1", "--rounds", "1", "--layers", "0",
    "--partition", "iid:min_partition_size=3", "--batch-size", "2", "--calibration", "1", "--budget", "none", "--method",
    "exact", "--threads", "1",
]  # fmt: skip


def write_augmented_voc(root):
    write_voc(root, augmented=True)


def write_more_of_cityscapes(root):
    write_cityscapes(root)
    for number in range(2):
        name = f"ulm_{number}"
        paint(root / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png", halves(7, 23, 20, 40))
        write_mask(root / "gtFine" / "train" / "ulm" / f"{name}_gtFine_labelIds.png", halves(7, 23, 20, 40))


@pytest.mark.parametrize(
    ("dataset", "write", "classes"),
    [("folder", write_folder, 3), ("voc2012", write_augmented_voc, 21), ("cityscapes", write_more_of_cityscapes, 19)],
)
def test_scenes_on_disk_are_learned_from_in_their_own_layout(dataset, write, classes, tmp_path):
    write(tmp_path / "data")
    data = ["--dataset", dataset, "--data-dir", str(tmp_path / "data")]
    assert main([*ALONE, *data, "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    assert len(run.classes) == classes
    assert len(run.rounds["class_iou"].iloc[-1]) == classes
    assert set(run.clients["status"]) == {"head-only"}


def shrink(folder):
    write_mask(folder / "train" / "masks" / "a_1.png", halves(0, 1, height=20))


def name_another_class(folder):
    (folder / "classes.txt").write_text("road\nsky\n")


def lose_a_mask(folder):
    (folder / "train" / "masks" / "a_1.png").unlink()


def empty(folder):
    for file in (folder / "val").rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (shrink, "masks/a_1.png"),
        (name_another_class, "masks/a_2.png"),
        (lose_a_mask, "images/a_1.png"),
        (empty, "val/images"),
    ],
)
def test_what_is_wrong_with_scenes_is_one_line_with_the_file_and_exit_code_2(harm, named, tmp_path, capsys):
    harm(write_folder(tmp_path / "data"))
    data = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main([*ALONE, *data]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fedact:")]
    assert named in line
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_read_a_run_with_masks(path, run_folder, monkeypatch):
    monkeypatch.setenv("FEDACT_RUN", str(run_folder))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
