"""CIFAR-10 and ImageNet weights: real files, which the project never contains."""

import pytest
import torch

import fedact
from fedact.data import Preprocessing
from fedact.models import make_model
from fedact.models.weights import from_file, load_into
from fedact.simulate import main


def cifar(data, *more: str) -> list[str]:
    return [
        "--dataset", "npz", "--data-dir", str(data / "cifar10.npz"), "--budget", "512KB",
        "--weights", str(data / "weights" / "mobilenet_v2-imagenet.safetensors"), *more,
    ]  # fmt: skip


def test_imagenet_weights_load_with_their_own_preprocessing(development_data):
    file = development_data / "weights" / "mobilenet_v2-imagenet.safetensors"
    weights = from_file(file, None)
    assert weights.preprocessing == Preprocessing(224, 224, (0.5,) * 3, (0.5,) * 3)
    model = make_model("mobilenet_v2", 1000)
    load_into(model, weights.tensors, str(file))
    assert torch.equal(model.state_dict()["classifier.1.weight"], weights.tensors["classifier.1.weight"])


def test_weights_of_another_network_are_refused(development_data, tmp_path, capsys):
    file = development_data / "weights" / "mcunet-5fps-imagenet.safetensors"
    out = tmp_path / "run"
    assert main([*cifar(development_data), "--weights", str(file), "--max-examples", "500", "--out", str(out)]) == 2
    assert "another model" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_a_fleet_learns_cifar_within_its_budget(development_data, tmp_path):
    small = ["--resolution", "64", "--max-examples", "400", "--max-test-examples", "200", "--clients", "4", "--rounds", "2"]
    small += ["--layers", "4", "--lr", "0.03"]
    assert main([*cifar(development_data, *small), "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    assert (run.clients["status"] == "ok").all()
    assert (run.clients["peak_bytes"] <= 512_000).all()
    assert run.rounds["accuracy"].iloc[-1] > run.rounds["accuracy"].iloc[0] + 0.1


@pytest.mark.exhaustive
def test_deeper_training_in_64_kilobytes_ends_above_the_head_alone(development_data, tmp_path):
    small = ["--resolution", "64", "--max-examples", "664", "--max-test-examples", "1000", "--rounds", "4", "--lr", "0.03"]
    small += ["--batch-size", "8", "--method", "auto", "--budget", "64KB", "--scope", "saved", "--evaluate-every", "4"]
    final = {}
    for layers in ("8", "0"):
        out = tmp_path / layers
        assert main([*cifar(development_data, *small), "--layers", layers, "--out", str(out)]) == 0
        run = fedact.load_run(out)
        assert (run.clients["saved_bytes"] <= 64_000).all()
        final[layers] = run.rounds["accuracy"].iloc[-1]
    assert final["8"] > final["0"] + 0.02
