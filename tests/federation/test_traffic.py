"""Bytes that travel: against Flower's own serialization of the messages of whole runs, after privacy, and when resumed."""

from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

import fedact
from fedact.federation import server, traffic
from fedact.federation.local_grid import LocalGrid
from fedact.simulate import main
from fedact.storage.checkpoints import load
from tests.support.runs import FEW, rows, timeless
from tests.support.stopping import stopping_after

RUN = [*FEW, "--method", "vanilla", "--budget", "480KB", "--rounds", "2", "--replan", "never", "--sample-fraction", "0.67"]
Pair = tuple[Message, Message]


@pytest.fixture
def exchanged(monkeypatch) -> list[Pair]:
    """The orders and replies of a local run, as the grid saw them."""
    seen: list[Pair] = []
    plainly = LocalGrid.reply

    def reply(grid, message):
        answer = plainly(grid, message)
        seen.append((message, answer))
        return answer

    monkeypatch.setattr("fedact.reports.run.figures.save_figures", lambda *_: {})
    monkeypatch.setattr(LocalGrid, "reply", reply)
    return seen


def serialized(**records) -> int:
    return recorddict_to_proto(RecordDict(records)).ByteSize()


def clients(folder: Path) -> list[dict]:
    return [row for row in rows(folder) if row["kind"] == "client"]


@pytest.mark.parametrize("privacy", ["none", "local_dp"])
def test_rows_say_what_flower_serializes(privacy, exchanged, tmp_path, monkeypatch):
    initial = []
    plainly = traffic.Traffic.__init__
    monkeypatch.setattr(traffic.Traffic, "__init__", lambda it, start: (initial.append(dict(start)), plainly(it, start))[1])
    assert main([*RUN, "--privacy", privacy, "--out", str(tmp_path / "run")]) == 0
    found = clients(tmp_path / "run")
    assert len(found) == len(exchanged) == 4
    met: set[int] = set()
    for row, (order, reply) in zip(found, exchanged, strict=True):
        model = {} if row["client"] in met else {"start": ArrayRecord(initial[0])}
        met.add(row["client"])
        content, plan = order.content, len(str(order.content["config"]["plan"]))
        down = serialized(arrays=content["arrays"], states=content["states"], **model) + plan
        up = serialized(arrays=reply.content["arrays"], metrics=reply.content["metrics"])
        tensors = sum(len(record) for record in (content["arrays"], *model.values()))
        # Flower's serialization adds types, shapes and lengths to each.
        assert 0 < down - row["download_bytes"] < 100 * tensors
        assert 0 < up - row["upload_bytes"] < 100 * (len(reply.content["arrays"]) + len(reply.content["metrics"]))
        weights = sum(tensor.nbytes for tensor in initial[0].values())
        assert (row["download_bytes"] > weights) == bool(model)
    assert len(met) == 3, "one client of three trains in both rounds"
    assert {row["copy_bytes"] for row in found} == {
        0 if privacy == "none" else load_run_plan(tmp_path / "run")["gradient_bytes"]
    }


def load_run_plan(folder: Path) -> dict:
    (plan,) = fedact.load_run(folder).plans["vanilla"].values()
    return plan


def test_a_resumed_run_does_not_send_the_initial_model_again(tmp_path, monkeypatch):
    monkeypatch.setattr("fedact.reports.run.figures.save_figures", lambda *_: {})
    assert main([*RUN, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(server.PartialFedAvg, "finish_round", stopping_after(1))
        assert main([*RUN, "--out", str(tmp_path / "cut")]) == 130
    assert main(["--resume", str(tmp_path / "cut")]) == 0
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")


def test_what_a_corrupt_client_received_and_sent_travelled_and_what_was_never_ordered_did_not(exchanged, tmp_path):
    faults = ["--faults", "drop=0.3,corrupt=0.3", "--rounds", "3", "--sample-fraction", "1", "--out", str(tmp_path / "run")]
    assert main([*RUN, *faults]) == 0
    found = clients(tmp_path / "run")
    assert {row["fault"] for row in found} >= {"drop", "corrupt"}
    for row in found:
        travelled = row["fault"] != "drop"
        assert all((row[name] is not None) == travelled for name in ("upload_bytes", "download_bytes"))
    assert len(exchanged) == sum(row["fault"] != "drop" for row in found)
    assert load(next((tmp_path / "run" / "checkpoints").glob("*.safetensors")))
