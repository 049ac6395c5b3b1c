"""Inputs of every kind through a run: what the network gets, what a device gets, and what is refused."""

import numpy as np
import pytest
from torch import nn

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.data import Loader
from fedact.models import MODELS
from fedact.simulate import main
from fedact.training.workspace import prepare, prepare_with

FLEET = {"weights": "none", "calibration": 16, "clients": 2, "partition": "iid", "layers": 0, "dataset": "npz"}


def of_series(classes, *_):
    """A network for series of six channels."""
    return nn.Sequential(nn.Conv1d(6, 8, 5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, classes))


def of_vectors(classes, *_):
    """A network for vectors of nine features."""
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, classes))


def of_grey(classes, *_):
    """A network for pictures of one channel."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    for build in (of_series, of_vectors, of_grey):
        monkeypatch.setitem(MODELS, build.__name__, build)


def write(file, x):
    y = np.arange(len(x)) % 3
    np.savez(file, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return file


RANDOM = np.random.default_rng(0)
LABELS = np.arange(80) % 3
SERIES = RANDOM.normal(size=(80, 6, 20)) * 100 + np.where(LABELS == 1, 300, 0)[:, None, None]
VECTORS = RANDOM.normal(size=(80, 9))
GREY = RANDOM.integers(0, 256, (80, 8, 8)).astype(np.uint8)
KINDS = {
    "series": (SERIES, {"model": "of_series"}, (6, 20)),
    "vectors": (VECTORS, {"model": "of_vectors"}, (9,)),
    "grey": (GREY, {"model": "of_grey", "resolution": 8}, (1, 8, 8)),
    "16-bit": (GREY.astype(np.uint16) * 256, {"model": "of_grey", "resolution": 8}, (1, 8, 8)),
    "floats": (GREY[..., None] * 10.0, {"model": "mobilenet_v2", "width": 0.1, "resolution": 16}, (3, 16, 16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_and_a_device_get_standardised_inputs(tmp_path, kind):
    x, settings, shape = KINDS[kind]
    config = make_config({**FLEET, **settings, "data_dir": write(tmp_path / "a.npz", x)})
    server = prepare(config).experiment
    inputs, _ = Loader(server.train, server.preprocessing)(np.arange(len(server.train)))
    assert inputs.shape[1:] == shape
    assert abs(float(inputs.mean())) < 0.3
    assert 0.4 < float(inputs.std()) < 1.3
    device = prepare_with(server.config, server.start, server.preprocessing).experiment
    of_device, _ = Loader(device.train, device.preprocessing)(np.arange(len(server.train)))
    assert np.array_equal(of_device, inputs)
    again = prepare(server.config).experiment
    assert (again.config, again.preprocessing) == (server.config, server.preprocessing)


def test_a_device_with_other_channels_is_refused(tmp_path):
    config = make_config({**FLEET, "model": "of_series", "data_dir": write(tmp_path / "a.npz", SERIES)})
    server = prepare(config).experiment
    write(tmp_path / "a.npz", SERIES[:, :5])
    with pytest.raises(ConfigError, match=r"a\.npz has images of shape \(5, 20\) here, and 6 channels on the server"):
        prepare_with(server.config, server.start, server.preprocessing)


def test_pretraining_on_series_is_kept_apart_by_their_shape(tmp_path):
    config = {**FLEET, "weights": "pretrain", "pretrain_epochs": 1, "model": "of_vectors", "clients": 1}
    starts = [
        prepare(make_config({**config, "data_dir": write(tmp_path / f"{place}.npz", x)})).experiment.start_digest
        for place, x in enumerate((VECTORS, VECTORS, VECTORS + RANDOM.normal(size=VECTORS.shape)))
    ]
    assert starts[0] == starts[1] != starts[2]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "series",
            {"resolution": 32},
            r"--resolution 32 is for pictures: the examples of a\.npz are series of shape \(6, 20\)",
        ),
        ("series", {"crop": 8}, "--crop 8 is for pictures"),
        ("series", {"flip": True}, "--flip is for pictures"),
        (
            "series",
            {"model": "of_vectors"},
            r"of_vectors takes no series of shape \(6, 20\), as a\.npz has; temporal_resnet takes series .*: mat1",
        ),
        ("vectors", {"model": "mobilenet_v2", "width": 0.1}, r"mobilenet_v2 takes no series of shape \(9,\)"),
        (
            "grey",
            {"model": "of_series"},
            r"--resolution 8: of_series takes no images of that size: .* grey pictures \(8, 8\)",
        ),
    ],
)
def test_what_does_not_go_with_the_kind_of_inputs_is_refused(tmp_path, kind, settings, said):
    x, usual, _ = KINDS[kind]
    config = make_config({**FLEET, **usual, **settings, "data_dir": write(tmp_path / "a.npz", x)})
    with pytest.raises(ConfigError, match=said) as caught:
        prepare(config)
    assert "\n" not in str(caught.value)


def test_a_network_that_scores_other_classes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "of_vectors", lambda *_: nn.Linear(9, 5))
    config = make_config({**FLEET, "model": "of_vectors", "data_dir": write(tmp_path / "a.npz", VECTORS)})
    with pytest.raises(ConfigError, match=r"for one example it gives \(1, 5\), not a score for each class: \(1, 3\)"):
        prepare(config)


def test_a_run_on_series_learns_them(tmp_path):
    file = write(tmp_path / "a.npz", SERIES)
    flags = ["--dataset", "npz", "--data-dir", str(file), "--model", "of_series", "--weights", "none", "--clients", "2"]
    out = tmp_path / "out"
    few = ["--rounds", "3", "--layers", "1", "--lr", "0.3", "--calibration", "10", "--partition", "iid", "--seed", "1"]
    assert main([*flags, *few, "--method", "exact", "--out", str(out)]) == 0
    from fedact import load_run

    rounds = load_run(out).rounds
    assert rounds["accuracy"].iloc[-1] >= 0.6 > rounds["accuracy"].iloc[0]
    assert "resolution" not in (out / "config.toml").read_text()
