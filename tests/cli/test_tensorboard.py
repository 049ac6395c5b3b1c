"""--tensorboard: the rounds of the records, once each, also after a stop."""

from pathlib import Path

import pytest

import fedact
from fedact.federation import server
from fedact.simulate import main
from tests.support.refusal import refused
from tests.support.runs import SMALL
from tests.support.stopping import stopping_after

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
RUN = [*SMALL, "--layers", "1", "--rounds", "3", "--method", "exact", "--method", "quantize:bits=4"]


def logged(folder: Path, name: str) -> dict[int, float]:
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def agrees(run: Path) -> None:
    rounds, clients = fedact.load_run(run).rounds, fedact.load_run(run).clients
    for method, slug in (("exact", "exact"), ("quantize:bits=4", "quantize-bits-4")):
        own, at = rounds[rounds["method"] == method].set_index("round"), run / "tensorboard" / slug
        assert logged(at, "round/accuracy") == pytest.approx(own["accuracy"].to_dict(), abs=1e-6)
        saved = own["saved_bytes_max"].dropna().astype(float)
        assert logged(at, "round/saved_bytes_max") == saved.to_dict()
        losses = clients[clients["method"] == method].groupby("round")["train_loss"].mean()
        assert logged(at, "clients/train_loss_mean") == pytest.approx(losses.to_dict(), rel=1e-6)
        assert set(logged(at, "clients/failed").values()) == {0.0}


def test_the_scalars_are_those_of_the_records(tmp_path):
    assert main([*RUN, "--tensorboard", "--out", str(tmp_path / "run")]) == 0
    agrees(tmp_path / "run")


def test_a_stopped_run_logs_every_round_once(tmp_path, monkeypatch):
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(2))
    assert main([*RUN, "--tensorboard", "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    agrees(tmp_path / "run")


def test_a_run_that_began_without_catches_up(tmp_path, monkeypatch):
    monkeypatch.setattr(server.PartialFedAvg, "finish_round", stopping_after(2))
    assert main([*RUN, "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main([*RUN, "--tensorboard", "--out", str(tmp_path / "run")]) == 0
    agrees(tmp_path / "run")


def test_without_the_package_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedact.config.errors.find_spec", lambda name: None)
    assert "pip install -e '.[tensorboard]'" in refused(capsys, ["--tensorboard"], tmp_path / "run")
