"""The made data set of movements: as many as were asked for, people who differ, and what a network learns of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedact
from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.data import DATASETS, Request
from fedact.data.readers.motion import ACTIVITIES, RATE
from fedact.models import MODELS
from fedact.simulate import main
from fedact.training.workspace import prepare


def made(train=None, test=None, seed=0, needed=0):
    return DATASETS["motion"](Request(None, train, test, np.random.default_rng(seed), needed=needed))


SIZES = [
    (None, None, 0, (2400, 600)), (None, None, 3000, (6000, 600)), (100, 7, 0, (100, 7)), (1, 1, 0, (1, 1)),
    (900, 6, 0, (900, 6)),
]  # fmt: skip


@pytest.mark.parametrize(("train", "test", "needed", "sizes"), SIZES)
def test_there_are_as_many_windows_as_were_asked_for(train, test, needed, sizes):
    source = made(train, test, needed=needed)
    assert (len(source.train), len(source.test)) == sizes
    assert source.train.images.shape[1:] == source.test.images.shape[1:] == (6, 128)
    assert (source.train.images.dtype, source.train.labels.dtype) == (np.float32, np.int64)
    people = np.unique(source.train.clients)
    assert len(people) == min(sizes[0], max(10, sizes[0] // 80))
    # Who is tested on is nobody who is trained on.
    assert not set(source.test.clients) & set(people)
    assert len(source.client_names) == 1 + source.test.clients.max()
    assert np.bincount(source.train.clients).min() >= min(20, sizes[0] // len(people))


def test_windows_follow_from_the_seed():
    first, same, other = (made(60, 12, seed).train.images for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_too_many_are_refused():
    with pytest.raises(ConfigError, match=r"--dataset motion: 3,000,600 examples .* at most 2,000,000"):
        made(3_000_000)


def test_gravity_and_cadence_are_in_the_readings():
    source = made(600, 60)
    still = source.train.images[source.train.labels == 5]
    assert np.linalg.norm(still[:, :3].mean(2), axis=1) == pytest.approx(9.81, abs=1.5)
    running = source.train.images[source.train.labels == 3]
    spectrum = np.abs(np.fft.rfft(running[:, :3] - running[:, :3].mean(2, keepdims=True), axis=2)).mean((0, 1))
    peak = np.fft.rfftfreq(128, 1 / RATE)[spectrum.argmax()]
    assert peak == pytest.approx(ACTIVITIES[3].cadence, rel=0.4)


def test_natural_clients_are_people():
    config = make_config({"dataset": "motion", "max_examples": 600, "max_test_examples": 30, "partition": "clients",
                          "weights": "none", "calibration": 20, "model": "of_motion", "layers": 0})  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "of_motion", small_network)
        experiment = prepare(config).experiment
    whole = made(600, 30).train
    assert experiment.classes == tuple(activity.name for activity in ACTIVITIES)
    assert {name.split()[0] for name in experiment.client_names} == {"person"}
    for client, name in enumerate(experiment.client_names):
        own = np.asarray(experiment.train.images[experiment.parts.whole[client]])
        of_person = whole.images[whole.clients == int(name.split()[1])]
        assert {window.tobytes() for window in own} == {window.tobytes() for window in of_person}


def small_network(classes, *_):
    """Two convolutions in time."""
    return nn.Sequential(
        nn.Conv1d(6, 16, 7, 2, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 5, 2, 2), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Conv1d(32, 32, 5, 2, 2), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(32, classes),
    )  # fmt: skip


def accuracy(model, train, test, lr, epochs=12) -> float:
    """Train plainly and return the accuracy on the test windows."""
    mean, std = train.images.mean((0, 2), keepdims=True), train.images.std((0, 2), keepdims=True)
    x, y = torch.from_numpy((train.images - mean) / std), torch.from_numpy(train.labels)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(x) // 32))
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32)[: len(x) // 32]:
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found = model.eval()(torch.from_numpy((test.images - mean) / std)).argmax(1)
    return float((found == torch.from_numpy(test.labels)).float().mean())


@pytest.mark.slow
def test_a_small_network_learns_what_a_linear_one_and_one_person_do_not():
    torch.manual_seed(0)
    source = made()
    one = source.train.take(np.flatnonzero(source.train.clients == 2))
    by_network = accuracy(small_network(6), source.train, source.test, 0.05)
    by_line = accuracy(nn.Sequential(nn.Flatten(), nn.Linear(768, 6)), source.train, source.test, 0.01)
    of_one = accuracy(small_network(6), one, source.test, 0.05, epochs=60)
    assert 0.7 < by_network < 0.95
    assert by_line < 0.4
    assert of_one < by_network - 0.2


@pytest.mark.slow
def test_a_run_on_people_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "of_motion", small_network)
    few = ["--max-examples", "400", "--max-test-examples", "60", "--rounds", "1", "--layers", "0", "--method", "exact"]
    flags = [
        "--dataset",
        "motion",
        "--model",
        "of_motion",
        "--weights",
        "none",
        "--partition",
        "clients",
        "--calibration",
        "32",
    ]
    assert main([*flags, *few, "--lr", "0.05", "--local-epochs", "1", "--calibration", "32", "--out", str(tmp_path)]) == 0
    run = fedact.load_run(tmp_path)
    assert set(run.clients["status"]) == {"head-only"}
    assert run.rounds["test_examples"].tolist() == [60, 60]
