"""Street scenes: real pictures and masks, a network that learned ImageNet, and a fleet that adapts it within its budget."""

import pytest

import fedact
from fedact.simulate import main

pytest.importorskip("segmentation_models_pytorch")

BUDGET = 1_500_000


@pytest.mark.exhaustive
def test_a_fleet_learns_street_scenes_within_its_budget(development_data, tmp_path):
    scenes = [
        "--task",
        "segmentation",
        "--dataset",
        "folder",
        "--data-dir",
        str(development_data / "camvid"),
        "--void",
        "11",
    ]
    start = ["--pretrain-from", str(development_data / "weights" / "mobilenet_v2-imagenet.safetensors")]
    fleet = ["--pretrain-epochs", "1", "--resolution", "72", "--clients", "4", "--partition-by", "source", "--rounds", "3"]
    steps = ["--batch-size", "4", "--local-epochs", "2", "--lr", "0.02", "--layers", "5", "--threads", "1"]
    how = ["--method", "auto", "--method", "hosvd", "--budget", str(BUDGET), "--scope", "saved"]
    assert main([*scenes, *start, *fleet, *steps, *how, "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    assert len(run.classes) == 11
    assert set(run.clients["status"]) == {"ok"}
    assert (run.clients["saved_bytes"] <= BUDGET).all()
    for _, rounds in run.rounds.groupby("method"):
        assert rounds["accuracy"].iloc[-1] > rounds["accuracy"].iloc[0] + 0.02
        assert rounds["loss"].iloc[-1] < 0.8 * rounds["loss"].iloc[0]
