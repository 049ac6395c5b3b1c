"""One writer at a time: a folder is another process's until that ends, however it ends."""

import fcntl
import logging
import subprocess
import sys

import pytest

from fedact.config.errors import ConfigError
from fedact.simulate import main
from fedact.storage.locks import LOCK_FILE, Locks, locked
from tests.support.runs import ONE

HOLDING = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""

COUNTING = """
import sys
from pathlib import Path
from fedact.storage.locks import locked
folder = Path(sys.argv[1])
for _ in range(100):
    with locked(folder, "waiting"):
        (folder / "inside").touch(exist_ok=False)
        count = int((folder / "count").read_text())
        (folder / "count").write_text(str(count + 1))
        (folder / "inside").unlink()
"""


def test_a_folder_is_anothers_until_the_end(tmp_path):
    with Locks() as first:
        first.take(tmp_path)
        first.take(tmp_path)
        with Locks() as second, pytest.raises(ConfigError, match="another process"):
            second.take(tmp_path)
    with Locks() as third:
        third.take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_locks_are_unknown_one_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with Locks() as locks, caplog.at_level(logging.WARNING):
        locks.take(tmp_path)
    assert "cannot be locked" in caplog.text


def test_two_processes_do_not_write_one_run_and_a_killed_one_keeps_nobody_out(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*ONE, "--rounds", "0", "--out", str(run)]) == 0
    capsys.readouterr()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(run / LOCK_FILE)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert main(["--resume", str(run)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "being written by another process" in line
        holder.kill()
    assert (run / LOCK_FILE).exists()
    assert main(["--resume", str(run)]) == 0
    assert not (run / LOCK_FILE).exists()


def test_a_folder_that_was_filled_while_a_run_was_prepared_is_left_alone(tmp_path, monkeypatch, capsys):
    make = "fedact.federation.plan_tasks.make_plans"
    out = tmp_path / "run"

    def meanwhile(experiment, method):
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        return {}

    monkeypatch.setattr(make, meanwhile)
    assert main([*ONE, "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_of_processes_that_lock_a_folder_in_turn_only_one_is_inside(tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNTING, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_lock_is_waited_for_and_that_is_said_once(tmp_path, caplog):
    command = [sys.executable, "-c", HOLDING.replace("60", "0.2"), str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with caplog.at_level(logging.INFO, "fedact"), locked(tmp_path, "waiting for another process"):
            assert holder.wait() == 0
    assert caplog.messages == ["waiting for another process"]


def test_a_link_in_a_locks_place_is_refused(tmp_path):
    (tmp_path / "away").write_text("years of work")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "away")
    with Locks() as locks, pytest.raises(ConfigError, match="is a link"):
        locks.take(tmp_path)
    assert (tmp_path / "away").read_text() == "years of work"
