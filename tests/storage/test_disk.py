"""Whole or not at all, in the right order, and one writer at a time."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from fedact.data import Examples
from fedact.models import pretraining
from fedact.models.weights import plain_preprocessing
from fedact.simulate import main
from fedact.storage.disk import append_lines, make_folder, sweep, truncate, unfinished_files, write_whole
from fedact.storage.run_folder import RunFolder
from tests.support.records import HEADER, client, round_
from tests.support.runs import ONE

# Order ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def order(monkeypatch) -> list[str]:
    """What is put on the disk and what is renamed, in order."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append(f"sync {'folder' if path.is_dir() else path.suffix} {path.stat().st_size * path.is_file()}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append("rename"), replace(old, new)))
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_is_after(tmp_path, order):
    write_whole(tmp_path / "a.txt", "four")
    assert order == ["sync .part 4", "rename", "sync folder 0"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_last_newline_comes_once_everything_before_it_is_on_the_disk(tmp_path, order):
    (tmp_path / "a.txt").write_text("1\n")
    append_lines(tmp_path / "a.txt", "2\n3\n")
    assert order == ["sync .txt 5", "sync .txt 6"]
    assert (tmp_path / "a.txt").read_text() == "1\n2\n3\n"


def test_each_new_folder_is_put_on_the_disk(tmp_path, order):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert order == ["sync folder 0", "sync folder 0"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.txt", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_later(tmp_path, monkeypatch, capsys):
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main([*ONE, "--out", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left" in line
    assert f"--resume {tmp_path / 'run'}" in line
    assert main(["--resume", str(tmp_path / "run")]) == 0


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "away").write_text("1\n")
    (tmp_path / "link").symlink_to(tmp_path / "away")
    with pytest.raises(OSError, match="symbolic links"):
        append_lines(tmp_path / "link", "2\n")
    write_whole(tmp_path / "link", "3\n")
    assert (tmp_path / "away").read_text() == "1\n"


def test_only_what_is_unfinished_is_swept_away(tmp_path):
    for name in (".config.toml.0123abcd.part", ".hidden", "mine.part", "config.toml"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".config.toml.0123abcd.part", (1000, 1000))
    sweep(tmp_path, older_than=999)
    assert [path.name for path in unfinished_files(tmp_path)] == [".config.toml.0123abcd.part"]
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".hidden", "mine.part", "config.toml"}


def test_what_follows_is_cut(tmp_path):
    (tmp_path / "a").write_text("12345")
    truncate(tmp_path / "a", 3)
    assert (tmp_path / "a").read_text() == "123"


# A power cut ---------------------------------------------------------------------------------------------------------------

BEFORE = "".join(json.dumps(row) + "\n" for row in (HEADER, round_(0)))
AFTER = "".join(json.dumps(row) + "\n" for row in (client(1, 0), client(1, 1), round_(1)))


@given(length=st.integers(0, len(AFTER) - 1), lost=st.sets(st.integers(0, len(AFTER) // 16)))
def test_a_write_of_which_any_blocks_were_lost_never_was(tmp_path_factory, length, lost):
    """Its length may be on the disk before its blocks, which read as zeros, but never its last newline."""
    folder = RunFolder(tmp_path_factory.mktemp("cut"))
    torn = bytearray(AFTER.encode()[:length])
    for block in lost:
        torn[16 * block : 16 * (block + 1)] = bytes(len(torn[16 * block : 16 * (block + 1)]))
    folder.records.write_bytes(BEFORE.encode() + torn)
    if torn.endswith(b"\n") and 0 in torn:
        # A block that ends with a line, after one that was lost, cannot be told from a broken file.
        return
    assert [row["kind"] for row in folder.cut_unfinished()] == ["run", "round"]
    assert folder.records.read_bytes() == BEFORE.encode()


OTHER = save({"0.weight": torch.zeros(4, 3, 3, 3)})

# The cache -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"\0", lambda content: OTHER]
)
def test_a_broken_pretrained_file_is_made_again(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(pretraining, "_train", lambda *arguments: None)
    examples = Examples(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4))

    def get() -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        return pretraining.pretrained(
            model, "a name", examples, plain_preprocessing(8), np.random.default_rng(0), tmp_path
        )  # fmt: skip

    first = get()
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    for name, age in (("old", 7200), ("another process's", 60)):
        (tmp_path / f".{name}.part").write_text("")
        os.utime(tmp_path / f".{name}.part", (time.time() - age,) * 2)
    again = get()
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())
    assert file.read_bytes() == whole
    assert [path.name for path in unfinished_files(tmp_path)] == [".another process's.part"]
