"""kill -9 at any moment: the run is started again or goes on, and ends as if nothing had been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.runs import RUNS, contents

KILLED = -signal.SIGKILL
KILLS_EACH = 4
MOST_KILLS = 3
"""Of one run: when it was started, and when it went on."""

Run = Callable[[list[str], float | None], tuple[int, float]]
"""Runs a command line, killed after so many seconds if any; returns its exit code and how long it took."""


@contextmanager
def fork_server(folder: Path) -> Iterator[Run]:
    environment = {**os.environ, "FEDACT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.fork_server"]
    pipe: Any = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def run(arguments: list[str], kill_after: float | None) -> tuple[int, float]:
            order = {"arguments": arguments, "log": str(folder / "log.txt"), "kill_after": kill_after}
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
            return answer["code"], answer["seconds"]

        yield run
        server.stdin.close()


@pytest.fixture(scope="module")
def forked(tmp_path_factory) -> Iterator[Run]:
    with fork_server(tmp_path_factory.mktemp("forked")) as run:
        yield run


def go_on(run: Run, arguments: list[str], out: Path, kill_after: float | None) -> int:
    """Start the run, or go on with it where there is one, as its user would."""
    command = ["--resume", str(out)] if (out / "config.toml").exists() else [*arguments, "--out", str(out)]
    code, _ = run(command, kill_after)
    assert code in (0, KILLED), f"exit code {code}: {command}"
    return code


def through_kills(run: Run, arguments: list[str], out: Path, kills: list[float]) -> None:
    """Take a run through kills to its end; the first meets it alive, at an earlier moment if it must."""
    first, *others = kills
    while go_on(run, arguments, out, first) != KILLED:
        shutil.rmtree(out)
        first *= 0.7
    for after in others:
        go_on(run, arguments, out, after)
    assert go_on(run, arguments, out, None) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_been(forked, tmp_path, name):
    # The first run pretrains, the second says how long one takes.
    for whole in ("warm", "whole"):
        code, seconds = forked([*RUNS[name], "--out", str(tmp_path / whole)], None)
        assert code == 0
    expected, random_ = contents(tmp_path / "whole"), random.Random(name)
    for number in range(KILLS_EACH):
        # The first kills lie evenly over the life of the process, start-up included; those after them anywhere.
        first = (number + random_.random()) / KILLS_EACH * seconds
        others = [random_.random() * seconds for _ in range(random_.randrange(MOST_KILLS))]
        through_kills(forked, RUNS[name], tmp_path / str(number), [first, *others])
        assert contents(tmp_path / str(number)) == expected


def on_the_command_line(folder: Path) -> Run:
    environment = {**os.environ, "FEDACT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(arguments: list[str], kill_after: float | None) -> tuple[int, float]:
        started, quiet = time.monotonic(), subprocess.DEVNULL
        command = [sys.executable, "-m", "fedact.simulate", *arguments]
        with subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment, start_new_session=True) as process:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, time.monotonic() - started

    return run


@pytest.mark.exhaustive
def test_so_does_the_real_command_line(tmp_path):
    run, arguments = on_the_command_line(tmp_path), RUNS["two seeds"]
    code, seconds = run([*arguments, "--out", str(tmp_path / "whole")], None)
    assert code == 0
    expected = contents(tmp_path / "whole")
    for number, share in enumerate((0.3, 0.75, 0.85, 0.9, 0.95)):
        through_kills(run, arguments, tmp_path / str(number), [share * seconds])
        assert contents(tmp_path / str(number)) == expected


def test_a_few_kills_do_no_harm(forked, tmp_path):
    arguments = RUNS["two seeds"]
    code, seconds = forked([*arguments, "--out", str(tmp_path / "whole")], None)
    assert code == 0
    through_kills(forked, arguments, tmp_path / "killed", [0.5 * seconds, 0.4 * seconds, 0.3 * seconds])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
