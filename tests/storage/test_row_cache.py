"""Rows on disk: what is marked is what was written, whoever else writes, opens, removes or dies meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.storage.row_cache import CHECKSUMS, Column, RowCache, open_rows

ROWS = 12
COLUMNS = (Column("pixels", np.dtype(np.uint8), (3, 2)), Column("values", np.dtype(np.float32), ()))
BYTES = ROWS * (6 + 4 + 4)


def pixels(rows: np.ndarray, key: int = 0) -> np.ndarray:
    return (rows[:, None, None] * 7 + np.arange(6).reshape(3, 2) + key).astype(np.uint8)


def values(rows: np.ndarray, key: int = 0) -> np.ndarray:
    return (rows + key / 8).astype(np.float32)


def fill(cache: RowCache, rows: np.ndarray, key: int = 0) -> None:
    cache.write(rows, pixels(rows, key), values(rows, key))
    cache.mark(rows)


def is_right(cache: RowCache, rows: np.ndarray, key: int = 0) -> bool:
    return np.array_equal(cache.values[0][rows], pixels(rows, key)) and np.array_equal(
        cache.values[1][rows], values(rows, key)
    )


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, ROWS + 3), max_size=6, unique=True)), max_size=6))
def test_rows_that_are_marked_are_there_with_their_values(tmp_path_factory, writes):
    root, marked = tmp_path_factory.mktemp("rows"), set()
    for mark, chosen in writes:
        cache, rows = open_rows(root, "key", COLUMNS, ROWS), np.array(chosen, np.int64)
        cache.write(rows, pixels(rows), values(rows))
        if mark:
            cache.mark(rows)
            marked |= {row for row in chosen if row < ROWS}
        there = np.flatnonzero(cache.has(np.arange(ROWS + 4)))
        assert set(there.tolist()) == marked
        assert is_right(cache, there)


@pytest.mark.parametrize("bound", [None, BYTES])
def test_a_cache_has_the_same_files_bounded_or_not_and_nobody_writes_through_its_arrays(tmp_path, bound):
    cache = open_rows(tmp_path, "key", COLUMNS, ROWS, bound)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "key").iterdir()}
    assert sizes == {"pixels": 6 * ROWS, "values": 4 * ROWS, CHECKSUMS: 4 * ROWS}
    assert not cache.has(np.arange(ROWS)).any()
    with pytest.raises(ValueError, match="read-only"):
        cache.values[0][0] = 1
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_cache_without_rows_or_of_no_room_is_one(tmp_path):
    for key, rows in (("none", 0), ("some", ROWS)):
        cache = open_rows(tmp_path, key, [Column("pixels", np.dtype(np.uint8), (0,))], rows, 0 if rows == 0 else ROWS)
        cache.write(np.arange(4), np.zeros((4, 0), np.uint8))
        cache.mark(np.arange(4))
        assert cache.has(np.arange(6)).tolist() == [row < 4 and rows > 0 for row in range(6)]


def test_the_least_recently_opened_caches_make_room(tmp_path):
    for number, key in enumerate(("a", "b", "c", "a", "d")):
        fill(open_rows(tmp_path, key, COLUMNS, ROWS, 3 * BYTES), np.arange(ROWS))
        os.utime(tmp_path / key, (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    assert open_rows(tmp_path, "a", COLUMNS, ROWS, 3 * BYTES).has(np.arange(ROWS)).all()


@pytest.mark.parametrize("file", ["pixels", "values", CHECKSUMS])
def test_a_row_that_is_not_what_was_written_is_made_anew_and_no_other(tmp_path, file, caplog):
    fill(open_rows(tmp_path, "key", COLUMNS, ROWS), np.arange(ROWS))
    path = tmp_path / "key" / file
    content = bytearray(path.read_bytes())
    content[5 * len(content) // ROWS] ^= 1
    path.write_bytes(content)
    cache = open_rows(tmp_path, "key", COLUMNS, ROWS)
    with caplog.at_level("INFO", "fedact"):
        assert np.flatnonzero(~cache.has(np.arange(ROWS))).tolist() == [5]
    assert "1 rows of" in caplog.text
    fill(cache, np.array([5]))
    assert open_rows(tmp_path, "key", COLUMNS, ROWS).has(np.arange(ROWS)).all()
    assert is_right(cache, np.arange(ROWS))


def test_a_cache_is_its_owners_alone_whatever_the_mask_and_one_that_was_open_to_all_too(tmp_path):
    (tmp_path / "cache").mkdir(0o777)
    before = os.umask(0)
    try:
        fill(open_rows(tmp_path / "cache", "key", COLUMNS, ROWS), np.arange(ROWS))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]}
    assert modes == {"cache": 0o700, "key": 0o700, "pixels": 0o600, "values": 0o600, CHECKSUMS: 0o600}


def test_a_cache_that_is_removed_while_it_is_open_goes_on_and_nothing_goes_astray(tmp_path):
    first = open_rows(tmp_path, "key", COLUMNS, ROWS, BYTES)
    rows = np.arange(4)
    first.write(rows, pixels(rows), values(rows))
    open_rows(tmp_path, "other", COLUMNS, ROWS, BYTES)
    second = open_rows(tmp_path, "key", COLUMNS, ROWS, BYTES)
    first.mark(rows)
    assert first.has(rows).all()
    assert is_right(first, rows)
    # Its mark would say of the new file what is true of the old one.
    assert not second.has(rows).any()


def test_a_cache_that_may_not_be_written_is_read(tmp_path, monkeypatch):
    fill(open_rows(tmp_path, "key", COLUMNS, ROWS), np.arange(ROWS))
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    cache = open_rows(tmp_path, "key", COLUMNS, ROWS)
    assert is_right(cache, np.flatnonzero(cache.has(np.arange(ROWS))))
    with pytest.raises(OSError, match="Bad file descriptor"):
        fill(cache, np.arange(ROWS))


BUSY = """
import sys
from pathlib import Path
import numpy as np
from fedact.storage.row_cache import open_rows
from tests.storage.test_row_cache import BYTES, COLUMNS, ROWS, fill, is_right
root, seed, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
random = np.random.default_rng(seed)
for _ in range(60):
    key = int(random.integers(3))
    cache = open_rows(root, str(key), COLUMNS, ROWS, 2 * BYTES if kind == "bounded" else None)
    for _ in range(3):
        rows = np.unique(random.integers(0, ROWS, 4))
        known = rows[cache.has(rows)]
        assert is_right(cache, known, key)
        fill(cache, np.setdiff1d(rows, known), key)
"""


@pytest.mark.parametrize("kind", ["bounded", "unbounded"])
def test_processes_that_fill_open_and_remove_the_same_caches_never_read_a_wrong_row(tmp_path, kind):
    commands = [[sys.executable, "-c", BUSY, str(tmp_path), str(seed), kind] for seed in range(3)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for command in commands]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert all(path.is_dir() for path in tmp_path.iterdir()), "no lock is left"
    for path in tmp_path.iterdir():
        cache = open_rows(tmp_path, path.name, COLUMNS, ROWS)
        assert is_right(cache, np.flatnonzero(cache.has(np.arange(ROWS))), int(path.name))
