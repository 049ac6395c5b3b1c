"""The same run on Ray's workers: the same rows, and the same ends."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

import fedact
from fedact.config.loading import make_config, read_toml
from fedact.federation import client
from fedact.federation.ray_grid import RayGrid, backend_config
from fedact.simulate import main
from fedact.training import workspace
from tests.support.runs import TINY, rows, timeless

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
SMALL = [*TINY, "--threads", "1", "--budget", "460KB:3,none:1", "--layers", "2"]


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    assert main([*SMALL, "--out", str(folder)]) == 0
    return folder


def small_config(**settings):
    return make_config({"dataset": "synthetic", "weights": "none", "clients": 4, "threads": 1, "runtime": "ray", **settings})


def answer_with_its_process(message, context):
    """Answer as a client would, with how often this process has prepared a workspace; client 3 takes it down."""
    if context.node_config["partition-id"] == 3:
        os._exit(1)
    if not isinstance(workspace.prepare, Mock):
        workspace.prepare = Mock(wraps=workspace.prepare)
    reply = client.app(message, context)
    reply.content["about"] = ConfigRecord({"prepared": workspace.prepare.call_count})
    return reply


def load_answer_with_its_process():
    return answer_with_its_process


@pytest.mark.slow
def test_rows_are_those_of_a_local_run_but_for_seconds(local, tmp_path):
    assert main([*SMALL, "--runtime", "ray", "--out", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == timeless(local)
    final = next((local / "checkpoints").iterdir()).name
    assert (tmp_path / "run" / "checkpoints" / final).read_bytes() == (local / "checkpoints" / final).read_bytes()


@pytest.mark.exhaustive
def test_ctrl_c_ends_with_130_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    # Several rounds are left after the first: a signal that finds the run finished would say nothing.
    longer, local, folder = [*SMALL, "--rounds", "5"], tmp_path / "local", tmp_path / "run"
    assert main([*longer, "--out", str(local)]) == 0
    command = [sys.executable, "-m", "fedact.simulate", *longer, "--runtime", "ray", "--out", str(folder)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while '"round": 1' not in (text_of(folder / "records.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=120)
        finally:
            # One that does not end fails the test, and does not hold up the others.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert f"--resume {folder}" in said
    assert fedact.load_run(folder).rounds["round"].max() < 5
    assert main(["--resume", str(folder)]) == 0
    assert timeless(folder) == timeless(local)


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.exhaustive
def test_a_client_that_fails_has_the_same_row_as_in_a_local_run(tmp_path):
    diverging = [*SMALL, "--lr", "1e6", "--clip-norm", "1e6", "--local-epochs", "20", "--layers", "4", "--rounds", "1"]
    for runtime in ("local", "ray"):
        assert main([*diverging, "--runtime", runtime, "--out", str(tmp_path / runtime)]) == 1
    assert timeless(tmp_path / "ray") == timeless(tmp_path / "local")


def test_what_the_server_raises_ends_the_run_and_no_worker_is_left(tmp_path, monkeypatch):
    def fall(*_):
        raise ZeroDivisionError("in the server")

    monkeypatch.setattr("fedact.federation.server.PartialFedAvg.aggregate_train", fall)
    with pytest.raises(ZeroDivisionError):
        main([*SMALL, "--runtime", "ray", "--out", str(tmp_path / "run")])
    assert not importlib.import_module("ray").is_initialized()


@pytest.mark.exhaustive
def test_workers_stay_and_prepare_once_and_one_that_dies_is_an_error_not_the_end(local):
    config = make_config(read_toml(local / "config.toml")).model_copy(update={"runtime": "ray"})
    plan = json.dumps(fedact.load_run(local).plans["hosvd"]["460000"])
    key = config.model_dump_json(exclude={"out", "devices", "method"})

    start = rows(local)[0]["start_digest"]

    def order(number):
        asked = {"round": number, "client": number % 4, "plan": plan, "experiment": key, "start": start, "privacy": "none"}
        return RecordDict({"arrays": ArrayRecord({}), "states": ArrayRecord({}), "config": ConfigRecord(asked)})

    with RayGrid(config, load_answer_with_its_process) as grid:
        nodes = list(grid.get_node_ids())
        for number in (1, 2, 3):
            replies = list(grid.send_and_receive([Message(order(number), node, "train") for node in nodes]))
            assert [reply.metadata.src_node_id for reply in replies] == nodes
            assert isinstance(replies[3].error, Error)
            assert "Actor" in replies[3].error.reason
            prepared = [reply.content["about"]["prepared"] for reply in replies[:3]]
            assert set(prepared) == {1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--ray-address", "127.0.0.1:9"], "no Ray cluster answers"),
        (["--ray-address", "cluster"], "HOST:PORT"),
        (["--threads", "256"], "so many cores"),
        (["--device", "cuda:1"], "write cuda"),
    ],
)
def test_what_ray_cannot_do_is_one_line_and_exit_code_2(settings, words, tmp_path, capsys):
    assert main([*SMALL, "--runtime", "ray", *settings, "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert len([line for line in lines if line.startswith("fedact:")]) == 1


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fedact.config.errors.find_spec", lambda name: None)
    assert main([*SMALL, "--runtime", "ray", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "extra ray" in said[0]
    assert not (tmp_path / "run").exists()


def test_flower_still_has_the_private_parts_that_ray_runtime_touches():
    backend = importlib.import_module("flwr.server.superlink.fleet.vce.backend.raybackend").RayBackend
    for name in ("build", "process_message", "num_workers"):
        assert hasattr(backend, name)


def test_a_client_takes_as_many_cores_as_it_has_threads():
    assert backend_config(small_config(threads=3))["client_resources"]["num_cpus"] == 3
    assert backend_config(small_config(device="cuda"))["client_resources"]["num_gpus"] == 1.0
    assert backend_config(small_config(ray_address="h:1"))["init_args"]["address"] == "h:1"
