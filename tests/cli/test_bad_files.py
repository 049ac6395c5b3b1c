import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedact import plan
from fedact.models import make_model, pretraining
from fedact.simulate import main
from tests.support.refusal import quiet_home, refused  # noqa: F401


def test_a_folder_that_holds_something_is_left_alone(capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "not empty" in refused(capsys, [], tmp_path / "out")


def test_a_file_as_out_is_left_alone(capsys, tmp_path):
    (tmp_path / "out").write_text("years of work")
    refused(capsys, [], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "years of work"


def test_an_out_that_cannot_be_made_is_refused_before_pretraining(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in refused(capsys, [], tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["x" * 300, "y" * 300 + "/b"])
def test_a_name_too_long_for_the_disk_is_one_line(name, capsys, tmp_path):
    for flag in ("--out", "--resume"):
        assert main([flag, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"fedact: {flag} ")
        assert error.endswith(": File name too long\n")
    assert not list(tmp_path.glob("[axy]*"))


def test_a_device_is_not_replaced_by_a_file(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for flag in ("json", "figure"):
        assert plan.main([f"--{flag}", str(tmp_path / "pipe.png")]) == 2
    assert capsys.readouterr().err.count("pipe.png cannot be written\n") == 2


def test_resume_of_a_folder_without_a_run(capsys, tmp_path):
    assert "no run" in refused(capsys, ["--resume", str(tmp_path / "nowhere")], tmp_path / "nowhere")


def test_resume_takes_no_other_settings(capsys, tmp_path):
    refused(capsys, ["--resume", str(tmp_path), "--clients", "3"], tmp_path / "out")


def run_folder(path: Path, **files: str) -> Path:
    path.mkdir()
    (path / "config.toml").write_text("clients = 2\nrounds = 1\n")
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


HEADER = '{"kind": "run", "config": {}}\n'


@pytest.mark.parametrize(
    "files",
    [
        {"config_toml": "clients = 0"},
        {"config_toml": "clients = "},
        {"records_jsonl": HEADER + "broken\n" + HEADER},
        {"records_jsonl": HEADER},
        {"records_jsonl": HEADER, "plans_json": "{broken"},
        {"records_jsonl": HEADER, "plans_json": "[]"},
        {"records_jsonl": HEADER, "plans_json": '{"hosvd": {"512000": {}}}'},
        {"records_jsonl": HEADER, "plans_json": '{"hosvd": 3}'},
        {"records_jsonl": '{"kind": "round"}\n'},
    ],
    ids=lambda files: " ".join(f"{name}={text[:40]}" for name, text in files.items()),
)
def test_resume_of_a_broken_run(files, capsys, tmp_path, monkeypatch):
    # A run that began has its pretrained weights in the cache.
    monkeypatch.setattr(pretraining, "_train", lambda *arguments: None)
    folder = run_folder(tmp_path / "run", **files)
    refused(capsys, ["--resume", str(folder)], folder)


def test_resume_with_dry_run_trains_nothing(capsys, tmp_path, monkeypatch):
    folder = run_folder(tmp_path / "run")
    monkeypatch.setattr("fedact.cli.simulate.resume_run", lambda out: pytest.fail("a dry run went on with a run"))
    main(["--resume", str(folder), "--dry-run"])


def test_a_dry_run_reads_no_plans_from_the_folder_it_is_called_in(capsys, tmp_path, monkeypatch):
    (tmp_path / "work" / "records.jsonl").write_text(HEADER)
    monkeypatch.setattr("fedact.federation.plan_tasks.make_plans", lambda experiment, method: {})
    monkeypatch.setattr(pretraining, "_train", lambda *arguments: None)
    assert main(["--dry-run"]) == 0


def arrays(**changes) -> dict[str, np.ndarray]:
    good = {
        "x_train": np.zeros((40, 8, 8, 3), np.uint8), "y_train": np.arange(40) % 2,
        "x_test": np.zeros((8, 8, 8, 3), np.uint8), "y_test": np.arange(8) % 2,
    }  # fmt: skip
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


NPZ = {
    "lacks y_test": arrays(y_test=None),
    "floats to train and bytes to test": arrays(x_train=np.zeros((40, 8, 8, 3), np.float32)),
    "gray to train and colour to test": arrays(x_train=np.zeros((40, 8, 8), np.uint8)),
    "five dimensions": arrays(x_train=np.zeros((40, 3, 8, 8, 1), np.uint8)),
    "no number": arrays(x_train=np.full((40, 8, 8, 3), np.nan), x_test=np.zeros((8, 8, 8, 3))),
    "a client too few": arrays(client_train=np.zeros(39, int)),
    "float labels": arrays(y_train=np.zeros(40)),
    "text labels": arrays(y_train=np.array(["cat"] * 40)),
    "objects": arrays(y_train=np.array([None] * 40)),
    "too few labels": arrays(y_train=np.zeros(39, int)),
    "negative label": arrays(y_train=-np.ones(40, int)),
    "a label no int64 holds": arrays(y_train=np.full(40, 2**63, np.uint64)),
    "a label far beyond the others": arrays(y_train=np.arange(40) % 2 * 10**12),
    "nothing to train": arrays(x_train=np.zeros((0, 8, 8, 3), np.uint8), y_train=np.zeros(0, int)),
    "nothing to test": arrays(x_test=np.zeros((0, 8, 8, 3), np.uint8), y_test=np.zeros(0, int)),
    "images of no pixels": arrays(x_train=np.zeros((40, 0, 0, 3), np.uint8)),
}


@pytest.mark.parametrize("content", NPZ.values(), ids=NPZ.keys())
def test_an_npz_that_is_no_data_set(content, capsys, tmp_path):
    np.savez(tmp_path / "data.npz", **content)
    refused(capsys, ["--dataset", "npz", "--data-dir", str(tmp_path / "data.npz"), "--clients", "1"], tmp_path / "out")


def broken_zip(file: Path) -> None:
    np.savez_compressed(file, **arrays(x_train=np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)))
    data = bytearray(file.read_bytes())
    data[200:400] = bytes(200)
    file.write_bytes(data)


BROKEN = {
    "text": lambda file: file.write_text("no zip"),
    "empty": lambda file: file.write_bytes(b""),
    "one array": lambda file: np.save(file.open("wb"), np.zeros(3)),
    "torn": broken_zip,
    "zip of text": lambda file: zipfile.ZipFile(file, "w").writestr("x_train.npy", "no array"),
    "folder": lambda file: file.mkdir(),
    "missing": lambda file: None,
}


@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_npz(write, capsys, tmp_path):
    write(tmp_path / "data.npz")
    refused(capsys, ["--dataset", "npz", "--data-dir", str(tmp_path / "data.npz")], tmp_path / "out")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_missing_cifar_without_network_names_what_to_put_where(dataset, capsys, tmp_path):
    line = refused(capsys, ["--dataset", dataset, "--data-dir", str(tmp_path / "data")], tmp_path / "out")
    assert str(tmp_path / "data") in line
    assert "python.tar.gz" in line


def weights_file(tmp_path, name: str, **changes) -> Path:
    torch.manual_seed(0)
    tensors = {**make_model("mobilenet_v2", 10, 0.1).state_dict(), **changes}
    file = tmp_path / name
    if file.suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    return file


def with_metadata(tmp_path, **metadata) -> Path:
    file = tmp_path / "weights.safetensors"
    save_file(make_model("mobilenet_v2", 10, 0.1).state_dict(), file, metadata)
    return file


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def pickled(file: Path, value: object) -> Path:
    torch.save(value, file)
    return file


WEIGHTS = {
    "missing": lambda tmp: tmp / "no.safetensors",
    "folder": lambda tmp: tmp,
    "empty safetensors": lambda tmp: written(tmp / "w.safetensors", b""),
    "broken safetensors": lambda tmp: written(tmp / "w.safetensors", b"not a tensor in sight"),
    "empty pth": lambda tmp: written(tmp / "w.pth", b""),
    "broken pth": lambda tmp: written(tmp / "w.pth", b"not a tensor in sight"),
    "torn pth": lambda tmp: written(tmp / "w.pth", weights_file(tmp, "whole.pth").read_bytes()[:5000]),
    "pth that runs code": lambda tmp: pickled(tmp / "w.pth", {"a": Payload()}),
    "pth of a list": lambda tmp: pickled(tmp / "w.pth", [torch.zeros(1)]),
    "pth of a checkpoint": lambda tmp: pickled(tmp / "w.pth", {"epoch": 3, "state_dict": {}}),
    "pth with numbers as names": lambda tmp: pickled(tmp / "w.pth", {1: torch.zeros(1), "a": torch.zeros(1)}),
    "pth of nothing": lambda tmp: pickled(tmp / "w.pth", {}),
    "another width": lambda tmp: weights_file(tmp, "w.safetensors"),
    "another model": lambda tmp: pickled(tmp / "w.pth", make_model("resnet18", 10).state_dict()),
    "infinite": lambda tmp: weights_file(tmp, "w.pth", **{"classifier.1.bias": torch.full((10,), float("inf"))}),
    "mean of words": lambda tmp: with_metadata(tmp, mean="bright"),
    "mean of nothing": lambda tmp: with_metadata(tmp, mean="[]"),
    "mean null": lambda tmp: with_metadata(tmp, mean="null"),
    "mean of two": lambda tmp: with_metadata(tmp, mean="[0.5, 0.5]"),
    "mean nan": lambda tmp: with_metadata(tmp, mean="[NaN, 0.5, 0.5]"),
    "std of zero": lambda tmp: with_metadata(tmp, std="[0, 0.5, 0.5]"),
    "resolution of nothing": lambda tmp: with_metadata(tmp, resolution="[]"),
    "resolution infinite": lambda tmp: with_metadata(tmp, resolution="Infinity"),
    "resolution 0": lambda tmp: with_metadata(tmp, resolution="0"),
    "resolution -8": lambda tmp: with_metadata(tmp, resolution="-8"),
}


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_bad_weights(make, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fedact.federation.plan_tasks.make_plans", lambda experiment, method: pytest.fail("bad weights were taken")
    )
    width = ["--width", "1"] if make is WEIGHTS["another width"] else ["--width", "0.1"]
    line = refused(capsys, ["--weights", str(make(tmp_path)), *width], tmp_path / "out")
    assert "--weights" in line


def test_imagenet_weights_without_network_name_what_to_put_where(capsys, tmp_path):
    line = refused(capsys, ["--weights", "imagenet"], tmp_path / "out")
    assert str(tmp_path / "torch") in line


def test_broken_imagenet_weights_in_torchs_cache(capsys, tmp_path):
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    for name in ("mobilenet_v2-7ebf99e0.pth", "mobilenet_v2-b0353104.pth"):
        (place / name).write_text("cut off")
    refused(capsys, ["--weights", "imagenet"], tmp_path / "out")


def test_a_cache_that_cannot_be_written_is_refused_before_pretraining(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "file"))
    assert "FEDACT_CACHE" in refused(capsys, [], tmp_path / "out")


def test_a_setting_that_the_model_would_ignore_is_refused(capsys, tmp_path):
    assert "width" in refused(capsys, ["--model", "resnet18", "--width", "0.5"], tmp_path / "out")
