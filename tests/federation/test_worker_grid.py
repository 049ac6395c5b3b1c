"""Clients played by worker processes: the same rows and checkpoints, whoever plays them; a dead worker is a failed row."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest
from flwr.app import Message, RecordDict

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.federation import worker_grid
from fedact.federation.shared_records import SharedRecords
from fedact.federation.simulation import Simulation
from fedact.federation.worker_grid import FEWEST_IMAGES, PRELOAD, WorkerGrid, images_trained, worker_count
from fedact.processes.pool import AHEAD, Workers
from fedact.simulate import main
from fedact.storage.run_folder import RunFolder
from fedact.training.workspace import close_workspaces
from tests.support import worker_functions as functions
from tests.support.paths import ROOT
from tests.support.runs import FEW_SETTINGS, SMALL, contents, timeless

ROTATED = {
    **FEW_SETTINGS, "clients": 4, "max_examples": 80, "rounds": 2, "layers": 1, "method": ("asi", "hosvd:variance=0.8"),
    "budget": "500KB:2,440KB:2", "faults": "corrupt=0.2,slow=0.3", "strategy": "fedadam:eta=0.03",
    "privacy": "local_dp:epsilon=50,clipping_norm=5,delta=0.01",
}  # fmt: skip
"""A method with state and one whose bytes follow the data, with all that passes through messages."""
LONG = [*SMALL, "--clients", "4", "--rounds", "12", "--layers", "1", "--method", "asi"]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDACT_CACHE", str(tmp_path_factory.mktemp("cache")))
        pool = Workers(2, 1, PRELOAD)
    with pool:
        yield pool


def run(settings, folder, workers=None):
    folder.mkdir()
    simulation = Simulation(make_config(settings), RunFolder(folder), {}, workers)
    simulation.open_folder()
    simulation.run(lambda *_: None)
    close_workspaces()
    return timeless(folder)


def test_rows_and_checkpoints_are_the_same_in_processes_to_the_bit(workers, tmp_path):
    alone, together = run(ROTATED, tmp_path / "1"), run(ROTATED, tmp_path / "2", workers)
    assert together == alone
    assert {row["status"] for row in alone if row["kind"] == "client"} >= {"ok", "failed"}
    found = [contents(tmp_path / name / "checkpoints") for name in "12"]
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_worker_that_is_killed_is_a_failed_row_and_the_run_goes_on(workers, tmp_path):
    settings = {**FEW_SETTINGS, "rounds": 2, "layers": 1, "method": ("exact",)}
    expected = run(settings, tmp_path / "1")
    workers.first(functions.die_as, (1, 1))
    found = run(settings, tmp_path / "2", workers)
    died = [row for row in found if row["kind"] == "client" and row["status"] == "failed"]
    assert [(row["round"], row["client"]) for row in died] == [(1, 1)]
    assert died[0]["reason"].startswith("WorkerDied: the worker died: killed by SIGKILL")
    first = [row for row in expected if row["kind"] == "client" and row["round"] == 1 and row["client"] != 1]
    assert all(row in found for row in first)
    assert [row["status"] for row in found if row["kind"] == "client" and row["round"] == 2] == ["ok"] * 3


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_stopped_leaves_no_process_and_goes_on_with_other_numbers_of_workers(tmp_path, number):
    out, environment = tmp_path / "run", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fedact.simulate", *LONG, "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 300
    while time.monotonic() < end and not any(row.get("round") == 2 for row in rows_so_far(out)):
        time.sleep(0.02)
    # A terminal sends Ctrl-C to all processes.
    os.kill(process.pid, number) if number == signal.SIGKILL else os.killpg(process.pid, number)
    assert process.wait(60) == (-9 if number == signal.SIGKILL else 130)
    while group_lives(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not group_lives(process.pid)
    before = set(active_children())
    assert main(["--resume", str(out), "--workers", "3"]) == 0
    assert set(active_children()) == before
    assert main([*LONG, "--workers", "1", "--out", str(tmp_path / "one")]) == 0
    found, whole = contents(out), contents(tmp_path / "one")
    assert found.pop("config.toml") != whole.pop("config.toml")
    assert found == whole


def rows_so_far(out):
    lines = (out / "records.jsonl").read_text().splitlines() if (out / "records.jsonl").exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_last_few_clients_begin_with_the_largest():
    grid = WorkerGrid(make_config({"clients": 12}), SharedRecords(Workers(1)), [5, 9, 1, 2, 8, 3, 4, 7, 6, 0, 11, 10])
    messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    clients = [message.metadata.dst_node_id - 2 for message in grid._largest_first(messages)]
    assert clients == [*range(12 - AHEAD), *sorted(range(12 - AHEAD, 12), key=lambda client: -grid.examples[client])]


def test_the_number_of_workers_is_the_cores_but_for_short_runs_and_few_clients(monkeypatch):
    monkeypatch.setattr(worker_grid, "processors", lambda: 8)
    monkeypatch.delenv("FEDACT_WORKERS")
    assert worker_count(make_config({})) == 8
    assert worker_count(make_config({"threads": 3})) == 2
    assert worker_count(make_config({"clients": 4})) == 4
    assert worker_count(make_config({"sample_fraction": 0.1, "rounds": 500})) == 2
    assert worker_count(make_config({"rounds": 1})) == 1
    assert worker_count(make_config({"rounds": 1, "workers": 3})) == 3
    assert worker_count(make_config({"runtime": "ray"})) == worker_count(make_config({"device": "cuda"})) == 1
    monkeypatch.setenv("FEDACT_WORKERS", "5")
    assert worker_count(make_config({})) == 5
    assert worker_count(make_config({"workers": 7})) == 7
    monkeypatch.setenv("FEDACT_WORKERS", "many")
    with pytest.raises(ConfigError, match=r"\$FEDACT_WORKERS is 'many'"):
        worker_count(make_config({}))


def test_images_count_each_time_that_they_are_trained_on_and_by_their_size():
    digits = make_config({})
    assert images_trained(digits) == 2000 * 10 * digits.local_epochs >= FEWEST_IMAGES
    assert images_trained(make_config({"resolution": 128, "rounds": 5, "max_examples": 100})) == 100 * 5 * 2 * 4
    assert images_trained(make_config({"rounds": 1, "seeds": 3})) == 2000 * (3 * 2 + 1.5 * 3 * digits.pretrain_epochs)


def test_workers_are_for_this_machine_alone():
    with pytest.raises(ConfigError, match="--workers 2 is for --runtime local, not for --runtime ray"):
        make_config({"runtime": "ray", "workers": 2})
    assert make_config({"runtime": "ray", "workers": 1}).workers == 1
