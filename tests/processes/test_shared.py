"""Shared values: equal to the bit, mapped and not copied, and nothing left on the disk."""

import subprocess
import sys

import numpy as np
import torch

from fedact.processes.pool import Workers
from fedact.processes.shared import SharedFolder
from fedact.storage.row_cache import Column, open_rows
from tests.support.paths import ROOT


def test_a_value_is_equal_and_its_arrays_lie_in_the_file(tmp_path):
    cache = open_rows(tmp_path / "rows", "key", [Column("a", np.dtype(np.uint8), (3,))], 4)
    given = {
        "images": np.arange(60, dtype=np.uint8).reshape(5, 4, 3), "rows": (cache.values[0], np.array([2, 0])),
        "weights": {"w": torch.randn(7, 3), "b": torch.tensor(2), "none": torch.empty(0, 3)}, "text": "x",
    }  # fmt: skip
    with SharedFolder(tmp_path / "shared") as folder:
        shared = folder.share(given)
        assert shared.file.stat().st_size >= 60 + 84 + 8
        assert len(shared.head) < 2000
        found = shared.open()
        assert np.array_equal(found["images"], given["images"])
        assert found["images"].dtype == np.uint8
        assert all(torch.equal(found["weights"][name], value) for name, value in given["weights"].items())
        assert isinstance(found["rows"][0], np.memmap)
        assert found["rows"][0].filename == cache.values[0].filename
        # Nobody else sees what is changed.
        found["images"][:] = 0
        found["weights"]["w"].zero_()
        assert np.array_equal(shared.open()["images"], given["images"])
        assert torch.equal(shared.open()["weights"]["w"], given["weights"]["w"])
        del found
    assert not any((tmp_path / "shared").iterdir())


def test_without_processes_it_is_the_value_itself(tmp_path):
    value = {"a": np.arange(3)}
    with Workers(1) as workers:
        assert workers.share(value).open() is value


KILLED = """
import os, sys, pathlib, numpy as np
from fedact.processes.shared import SharedFolder
folder = SharedFolder(pathlib.Path(sys.argv[1]))
folder.share(np.arange(1000))
print(len(list(pathlib.Path(sys.argv[1]).iterdir())), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path):
    command, pipe = [sys.executable, "-c", KILLED, str(tmp_path)], subprocess.PIPE
    with (
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as process,
        SharedFolder(tmp_path) as folder,
    ):
        assert process.stdout.readline().strip() == b"1"
        folder.share(np.arange(3))
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
        process.kill()
        process.wait()
        with SharedFolder(tmp_path) as another:
            another.share(np.arange(3))
            assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
