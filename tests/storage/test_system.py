"""Linux, macOS and Windows: with what they lack taken away, functions do the same and runs have the same rows.

The other two systems are simulated (tests/support/other_system.py), not run.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedact.simulate import main
from fedact.storage.disk import append_lines
from fedact.storage.system import extend, open_to_append, processors, replace, reserve, sync_data, sync_folder, write_at
from tests.support.other_system import LACKING, is_in_use
from tests.support.picture_sets import write_folder
from tests.support.runs import SMALL, timeless

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["linux", *LACKING])
def system(request, monkeypatch) -> str:
    for name in LACKING.get(request.param, ()):
        monkeypatch.delattr(os, name, raising=False)
    return request.param


def test_there_is_a_processor(system):
    assert 1 <= processors() <= (os.cpu_count() or 1)


def test_what_is_written_at_a_place_is_there_and_nothing_else(system, tmp_path):
    with (tmp_path / "file").open("w+b") as opened:
        reserve(opened.fileno(), 10)
        write_at(opened.fileno(), b"abc", 4)
        write_at(opened.fileno(), b"", 20)
        sync_data(opened.fileno())
    assert (tmp_path / "file").read_bytes() == b"\0\0\0\0abc\0\0\0"


@pytest.mark.parametrize("make", [reserve, extend])
@pytest.mark.parametrize("size", [0, 1, 3 * 2**20 + 5])
def test_a_new_file_is_of_zeros_and_has_their_room_where_that_is_asked_for(system, tmp_path, make, size):
    with (tmp_path / "file").open("w+b") as opened:
        make(opened.fileno(), size)
    assert (tmp_path / "file").read_bytes() == bytes(size)
    taken = (tmp_path / "file").stat().st_blocks * 512
    assert taken >= size if make is reserve else taken <= 2**16


def test_windows_is_asked_for_a_file_with_holes(tmp_path, monkeypatch):
    asked = []
    kernel = SimpleNamespace(DeviceIoControl=lambda handle, code, *others: asked.append((handle.value, code)))
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(get_osfhandle=lambda descriptor: 1000 + descriptor))
    with (tmp_path / "file").open("w+b") as opened:
        extend(opened.fileno(), 5)
        assert asked == [(1000 + opened.fileno(), 0x900C4)]
    assert (tmp_path / "file").read_bytes() == bytes(5)


def test_a_line_is_appended_and_never_through_a_link(system, tmp_path):
    (tmp_path / "file").write_bytes(b"1\n")
    append_lines(tmp_path / "file", "2\n")
    assert (tmp_path / "file").read_bytes() == b"1\n2\n"
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(tmp_path / "link")


def test_a_folder_is_put_on_the_disk_where_that_can_be(system, tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sync_folder(tmp_path)
    assert len(synced) == (system != "windows")


def test_a_file_that_is_open_for_a_moment_is_replaced_after_it(tmp_path, monkeypatch):
    plain, refused = os.replace, iter([True, True, False])

    def busy(*files):
        if next(refused):
            raise PermissionError(13, "in use")
        plain(*files)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "new").write_bytes(b"new")
    replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    refused = iter([True] * 100)
    (tmp_path / "new").write_bytes(b"newer")
    with pytest.raises(PermissionError):
        replace(tmp_path / "new", tmp_path / "old")


# Runs ----------------------------------------------------------------------------------------------------------------------

FORBIDDEN = re.compile(r'[<>:"|?*\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""What no name of a file may hold on Windows."""

DIGITS = [
    "--max-examples", "200", "--max-test-examples", "60", "--width", "0.1", "--resolution", "16", "--clients", "3",
    "--rounds", "2", "--batch-size", "8", "--calibration", "16", "--layers", "2", "--local-epochs", "1", "--budget", "500KB",
    "--method", "hosvd:variance=0.8", "--strategy", "fedadam:eta=0.03", "--pretrain-epochs", "1", "--threads", "1",
]  # fmt: skip
"""The main job, small: a pretrained network, the cache of its frozen part, a server that remembers, factors."""


def steps(out: Path, data: Path) -> list[dict]:
    pictures = [*SMALL, "--dataset", "folder", "--data-dir", str(data), "--rounds", "1", "--layers", "0", "--threads", "1"]
    return [
        {"arguments": [*DIGITS, "--out", str(out / "digits")], "stop_after": 1},
        {"arguments": ["--resume", str(out / "digits")], "stop_after": None},
        {"arguments": [*pictures, "--seeds", "2", "--method", "exact", "--out", str(out / "pictures")], "stop_after": None},
    ]


def test_on_windows_a_run_is_stopped_goes_on_and_has_the_same_rows(tmp_path):
    write_folder(tmp_path / "data", 20, shades=True)
    environment = {
        **os.environ, "FEDACT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-X", "warn_default_encoding", "-m", "tests.support.other_system", "windows"]
    asked = json.dumps(steps(tmp_path / "windows", tmp_path / "data"))
    done = subprocess.run(command, input=asked, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [130, 0, 0], done.stderr
    _, *finished = steps(tmp_path / "linux", tmp_path / "data")
    assert main([*DIGITS, "--out", str(tmp_path / "linux" / "digits")]) == 0
    assert main(finished[-1]["arguments"]) == 0
    for run in ("digits", "pictures/seed-0", "pictures/seed-1"):
        assert timeless(tmp_path / "windows" / run) == timeless(tmp_path / "linux" / run)
        for file in ("partition.csv", "plans.json"):
            assert (tmp_path / "windows" / run / file).read_bytes() == (tmp_path / "linux" / run / file).read_bytes()
    written = [path for folder in ("windows", "cache") for path in (tmp_path / folder).rglob("*")]
    assert [path.name for path in written if FORBIDDEN.search(path.name) or path.name == ".lock"] == []


def test_on_macos_a_run_has_the_same_rows(tmp_path, monkeypatch):
    arguments = [*SMALL, "--rounds", "1", "--layers", "2", "--method", "hosvd:variance=0.8", "--budget", "500KB"]
    for system in ("linux", "macos"):
        for name in LACKING[system] if system == "macos" else ():
            monkeypatch.delattr(os, name)
        # Each starts with an empty cache, of another size: an experiment that this process still has is not made again.
        monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / f"{system}-cache"))
        size = {"linux": "1GB", "macos": "2GB"}[system]
        assert main([*arguments, "--cache-size", size, "--out", str(tmp_path / system)]) == 0
    assert timeless(tmp_path / "linux") == timeless(tmp_path / "macos")


def test_a_file_is_in_use_while_it_is_open_or_mapped(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    assert not is_in_use(str(tmp_path / "file"))
    with (tmp_path / "file").open("rb"):
        assert is_in_use(str(tmp_path / "file"))
