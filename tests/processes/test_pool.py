"""Workers: order, errors, deaths, and an end with their parent."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from fedact.processes.pool import Workers
from fedact.processes.worker import Outcome, WorkerDied
from tests.support import worker_functions as functions
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as pool:
        yield pool


def values(outcomes):
    return [outcome.result() for outcome in outcomes]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids, seconds=20.0) -> bool:
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_outcomes_come_in_the_order_of_the_arguments_from_other_processes(workers):
    assert values(workers.map(functions.double, range(20))) == [2 * value for value in range(20)]
    pids = set(values(workers.map(functions.whoami, range(20))))
    assert len(pids) <= 2
    assert os.getpid() not in pids
    assert set(values(workers.map(functions.threads, range(4)))) == {1}


def test_one_worker_is_this_process():
    with Workers(1) as pool:
        assert values(pool.map(functions.whoami, [0])) == [os.getpid()]
        assert isinstance(next(pool.map(functions.fails, ["x"])).error, ValueError)


def test_arguments_are_taken_only_as_they_are_needed(workers):
    taken = []
    outcomes = workers.map(functions.double, (taken.append(value) or value for value in range(100)))
    assert next(outcomes).result() == 0
    assert len(taken) < 20
    outcomes.close()
    assert values(workers.map(functions.double, [1])) == [2]


def test_an_exception_comes_back_with_its_traceback(workers):
    error = next(workers.map(functions.fails, ["no such thing"])).error
    assert isinstance(error, ValueError)
    assert str(error) == "no such thing"
    assert "worker_functions.py" in error.__notes__[0]


@pytest.mark.parametrize("function", [functions.fails_strangely, functions.returns_a_function])
def test_what_cannot_be_sent_back_is_an_error_and_the_worker_stays(workers, function):
    before = {child.pid for child in active_children()}
    assert isinstance(next(workers.map(function, [0])).error, RuntimeError)
    assert values(workers.map(functions.double, range(4))) == [0, 2, 4, 6]
    assert {child.pid for child in active_children()} == before


def test_tensors_and_arrays_come_back_to_the_bit(workers):
    given = {"a": torch.randn(3, 4).t(), "b": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.ones(0)}
    given["d"] = np.arange(5)[::2]
    found = next(workers.map(dict, [given])).result()
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in "abc")
    assert np.array_equal(found["d"], given["d"])
    assert isinstance(next(workers.map(functions.double, [torch.nn.Parameter(torch.ones(2))])).result(), torch.Tensor)


def test_a_worker_that_dies_is_the_outcome_of_its_call_and_is_replaced(workers):
    outcomes = list(workers.map(functions.ends_where_negative, [1, -1, 2, 3, -4, 5]))
    assert [outcome.value for outcome in outcomes] == [1, None, 2, 3, None, 5]
    assert all(isinstance(outcomes[at].error, WorkerDied) for at in (1, 4))
    assert str(outcomes[1].error) == "the worker died: exit code 3"
    if hasattr(signal, "SIGKILL"):
        died = next(workers.map(functions.kills_itself, [0])).error
        assert str(died) == "the worker died: killed by SIGKILL, as by a system that is out of memory"
    assert values(workers.map(functions.double, range(8))) == list(range(0, 16, 2))


def test_what_comes_first_is_called_once_in_each_worker_also_in_a_new_one():
    with Workers(2) as pool:
        pool.first(functions.remember, 3)
        found = values(pool.map(functions.remembered, range(8)))
        assert {value for _, value in found} == {3}
        os.kill(found[0][0], signal.SIGTERM)
        found = [outcome for outcome in pool.map(functions.remembered, range(8)) if outcome.error is None]
        assert {outcome.value[1] for outcome in found} == {3}
        pool.first(functions.fails, "not ready")
        assert str(next(pool.map(functions.double, [1])).error) == "not ready"


def test_workers_in_a_worker_are_that_worker(workers):
    count, pids = next(workers.map(functions.nested, [[1, 2, 3]])).result()
    assert count == 1
    assert len(set(pids)) == 1


def test_an_outcome_raises_its_error():
    with pytest.raises(ValueError, match="so it is"):
        Outcome(error=ValueError("so it is")).result()


UNGUARDED = """
import pathlib, sys
print("main", flush=True)
from fedact.processes.pool import Workers
from tests.support import worker_functions as functions
workers = Workers(2)
list(workers.map(functions.sleep_long, [pathlib.Path(sys.argv[1])] * 2))
"""


def started(folder, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, env=environment)
    end = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    return process, [int(path.name) for path in folder.iterdir()]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent_and_a_script_without_a_guard_runs_once(tmp_path, number):
    (folder := tmp_path / "pids").mkdir()
    process, pids = started(folder, tmp_path)
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(alive, pids))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -number
    assert gone(pids)
    assert out == b"main\n"


def test_results_are_values_in_order_with_what_was_logged_and_the_first_exception_is_raised(workers, caplog):
    with caplog.at_level("INFO", "fedact"):
        assert list(workers.results(functions.says, range(5))) == list(range(5))
    assert [record.getMessage() for record in caplog.records if record.name == "fedact.said"] == [
        f"value {value}" for value in range(5)
    ]
    caplog.clear()
    with caplog.at_level("WARNING", "fedact"):
        assert list(workers.results(functions.says, [1])) == [1]
    assert not caplog.records
    with pytest.raises(ValueError, match="x"):
        list(workers.results(functions.fails, ["x"]))


def test_what_a_worker_died_at_is_called_here(workers):
    assert list(workers.results(functions.dies_in_a_worker, [1, 2])) == [1, 2]
