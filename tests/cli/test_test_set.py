"""Accuracy is the whole test set's; what it is made of stands beside it, and old runs say what theirs is."""

import json
import shutil

import numpy as np
import pytest
import torch

import fedact
from fedact.compare import main as compare
from fedact.reports.run.tables import run_figures
from fedact.simulate import main as simulate
from fedact.training.trained_model import trained_model
from tests.support.records import write_run, write_segmentation
from tests.support.runs import rows

DIGITS = [
    "--max-examples", "160", "--max-test-examples", "60", "--width", "0.1", "--resolution", "16", "--clients", "3",
    "--rounds", "2", "--batch-size", "8", "--calibration", "16", "--layers", "1", "--method", "exact", "--lr", "0.1",
    "--pretrain-epochs", "2",
]  # fmt: skip
PARTS = ("accuracy", "client_accuracy", "unheld_accuracy", "forgotten", "test_examples")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished run of which the clients lack two of ten classes."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    assert simulate([*DIGITS, "--out", str(folder)]) == 0
    return folder


def test_every_round_is_scored_on_the_whole_test_set_and_on_its_parts(pretrained):
    run = fedact.load_run(pretrained)
    assert run.rounds["test_examples"].tolist() == [60] * 3
    assert run.rounds["forgotten"].tolist()[0] == 0
    workspace, model = trained_model(run, "exact")
    test, labels = workspace.experiment.test, workspace.experiment.test.labels
    assert len(np.unique(labels)) == 10
    with torch.no_grad():
        found = model(workspace.experiment.preprocessing(test.images[np.arange(60)])).argmax(1).numpy()
    held = np.bincount(workspace.experiment.train.labels, minlength=10)
    assert np.count_nonzero(held == 0) == 2
    last = run.rounds.iloc[-1]
    right = found == labels
    assert last["accuracy"] == pytest.approx(right.mean())
    assert last["unheld_accuracy"] == pytest.approx(right[held[labels] == 0].mean())
    assert last["client_accuracy"] == pytest.approx(
        sum(right[labels == label].mean() * held[label] for label in range(10)) / held.sum()
    )
    assert last["forgotten"] == pytest.approx(run.rounds["unheld_accuracy"].iloc[0] - last["unheld_accuracy"])


def test_a_resumed_run_forgets_as_one_in_a_piece(pretrained, tmp_path):
    begun, resumed = tmp_path / "begun", tmp_path / "resumed"
    assert simulate([*DIGITS, "--out", str(begun), "--rounds", "0"]) == 0
    shutil.copytree(pretrained, resumed)
    lines = (resumed / "records.jsonl").read_text().splitlines(keepends=True)
    (resumed / "records.jsonl").write_text("".join(lines[:2]))
    shutil.rmtree(resumed / "checkpoints")
    shutil.copytree(begun / "checkpoints", resumed / "checkpoints")
    assert simulate(["--resume", str(resumed)]) == 0
    first, second = (
        [[row[name] for name in PARTS] for row in rows(run) if row["kind"] == "round"] for run in (pretrained, resumed)
    )
    assert first == second


def test_tables_and_figures_show_the_parts(pretrained, tmp_path, capsys):
    figures = run_figures(fedact.load_run(pretrained), "exact")
    run = fedact.load_run(pretrained)
    last = run.rounds.iloc[-1]
    error = (last["accuracy"] * (1 - last["accuracy"]) / 60) ** 0.5
    assert figures["standard error"] == f"{100 * error:.1f} %"
    assert figures["test examples"] == "60"
    assert figures["forgotten of these"] == f"{100 * last['forgotten']:.1f} points"
    assert figures["accuracy on the clients' classes"].endswith(f"{100 * last['client_accuracy']:.1f} %")
    assert (pretrained / "forgetting.png").exists()
    assert compare([str(pretrained), "--out", str(tmp_path)]) == 0
    assert "forgotten" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "compare-forgetting-by-round.png").exists()
    head, line = (tmp_path / "comparison.csv").read_text().splitlines()
    values = dict(zip(head.split(","), line.split(","), strict=True))
    assert float(values["client_accuracy"]) == pytest.approx(last["client_accuracy"])
    assert float(values["accuracy_standard_error"]) == pytest.approx(error)
    assert values["test_examples"] == "60"


def test_a_mean_iou_has_no_standard_error(tmp_path):
    run = fedact.load_run(write_segmentation(tmp_path / "run"))
    assert run_figures(run, "hosvd")["standard error"] == "-"


def old(folder, **config):
    return write_run(folder, config={"weights": "pretrain", **config})


def test_a_comparison_says_which_runs_were_scored_on_a_redrawn_test_set(tmp_path, capsys):
    new = write_run(tmp_path / "new", config={"weights": "pretrain"}, header={"schema": 2})
    assert fedact.load_run(old(tmp_path / "old")).rounds["client_accuracy"].isna().all()
    assert compare([str(tmp_path / "old"), str(new), "--out", str(tmp_path / "both")]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "old was written by an earlier fedact: its accuracy is on test examples redrawn" in said
    report = (tmp_path / "both/report.html").read_text()
    assert "These runs differ in test set: their scores are not of the same thing." in report
    write_run(tmp_path / "none", config={"weights": "none"})
    assert compare([str(tmp_path / "none"), "--out", str(tmp_path / "one")]) == 0
    assert "redrawn" not in "".join(capsys.readouterr())


def test_an_old_run_does_not_go_on_with_another_test_set(pretrained, tmp_path, capsys):
    folder = tmp_path / "old"
    shutil.copytree(pretrained, folder)
    header, *others = rows(folder)
    header["schema"] = 1
    write = (folder / "records.jsonl").write_text
    write("".join(json.dumps(row) + "\n" for row in (header, *others)))
    assert simulate(["--resume", str(folder)]) == 0
    write("".join(json.dumps(row) + "\n" for row in (header, *others[:1])))
    capsys.readouterr()
    assert simulate(["--resume", str(folder)]) == 2
    assert "measured accuracy on a redrawn part of the test set" in capsys.readouterr().err
