"""What a frozen part made of examples is kept, and the same to the last bit with and without."""

from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedact
from fedact.nn.prefix.outputs import Layout, group_for, layouts, outputs_by_group
from fedact.nn.prefix.split import split
from fedact.nn.surgery import compress
from fedact.simulate import main
from fedact.storage.row_cache import CHECKSUM_BYTES
from fedact.training.prefix_cache import PrefixCache, fingerprint, open_cache
from tests.support.runs import TINY, timeless

LAYOUT = Layout((3, 2), (0, 1, 2), torch.float32)
EXAMPLES = 12
VALUES = torch.randn(EXAMPLES, 3, 2, generator=torch.Generator().manual_seed(0))


def maker(asked: list[int]):
    """Makes rows of VALUES, two at a time, and remembers for which examples."""

    def make(positions):
        asked.extend(positions.tolist())
        for start in range(0, len(positions), 2):
            chosen = positions[start : start + 2]
            yield chosen, [VALUES[torch.from_numpy(chosen)]]

    return make


def opened(folder: Path, key: str = "key", room: int = EXAMPLES) -> PrefixCache:
    return open_cache(folder, key, [LAYOUT], EXAMPLES, room * (LAYOUT.nbytes + CHECKSUM_BYTES))


@given(st.lists(st.lists(st.integers(0, EXAMPLES - 1), max_size=6), max_size=5), st.integers(0, EXAMPLES))
def test_values_are_those_made_and_made_once_where_there_is_room(tmp_path_factory, requests, room):
    folder, asked = tmp_path_factory.mktemp("cache"), []
    for request in requests:
        positions = np.unique(np.array(request, np.int64))
        (found,) = opened(folder, room=room).get(positions, maker(asked))
        assert torch.equal(found, VALUES[torch.from_numpy(positions)])
    kept = [position for position in asked if position < room]
    assert len(kept) == len(set(kept))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= room * (
        LAYOUT.nbytes + CHECKSUM_BYTES
    )


@pytest.mark.parametrize("room", [0, 5, EXAMPLES])
def test_filling_makes_what_has_room_and_is_not_there_once(tmp_path, room):
    asked: list[int] = []
    opened(tmp_path, room=room).fill(np.array([4, 1, 9]), maker(asked))
    opened(tmp_path, room=room).fill(np.arange(EXAMPLES), maker(asked))
    assert sorted(asked) == list(range(room))
    (found,) = opened(tmp_path, room=room).get(np.arange(EXAMPLES), maker(asked))
    assert torch.equal(found, VALUES)
    assert sorted(asked) == list(range(EXAMPLES))


def test_another_key_is_another_cache_and_the_oldest_make_room(tmp_path):
    asked: list[int] = []
    for key in ("a", "b", "a"):
        opened(tmp_path, key).get(np.arange(EXAMPLES), maker(asked))
    assert len(asked) == 3 * EXAMPLES
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_a_damaged_file_empties_the_cache(tmp_path, damage):
    opened(tmp_path).get(np.arange(EXAMPLES), maker([]))
    (file,) = tmp_path.rglob("value-0")
    file.unlink() if damage == "missing" else file.write_bytes(b"0")
    asked: list[int] = []
    (found,) = opened(tmp_path).get(np.arange(EXAMPLES), maker(asked))
    assert len(asked) == EXAMPLES
    assert torch.equal(found, VALUES)


def test_what_was_written_but_not_said_to_be_there_is_made_again(tmp_path):
    def stopped(positions):
        yield positions[:2], [torch.zeros(2, 3, 2)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).get(np.arange(4), stopped)
    (found,) = opened(tmp_path).get(np.arange(4), maker([]))
    assert torch.equal(found, VALUES[:4])


def test_two_processes_at_once_read_the_same(tmp_path):
    def get(first: int) -> None:
        for start in (first, 3, 0):
            positions = np.arange(start, start + 6)
            (found,) = opened(tmp_path).get(positions, maker([]))
            assert torch.equal(found, VALUES[torch.from_numpy(positions)])

    processes = [get_context("fork").Process(target=get, args=(first,)) for first in (0, 6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    asked: list[int] = []
    opened(tmp_path).get(np.arange(EXAMPLES), maker(asked))
    assert asked == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_becomes_of_an_example_does_not_depend_on_the_others(memory_format):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 4))
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    cut = split(compress(model.to(memory_format=memory_format), "exact", layers=1))

    def load(positions):
        return images[torch.from_numpy(positions)], torch.zeros(len(positions))

    stored_layouts = layouts(cut, load, np.arange(40))
    whole = torch.cat([values[0] for _, values in outputs_by_group(cut.prefix, load, np.arange(40), stored_layouts, 16)])
    some = np.array([39, 3, 17])
    ((_, (few,)),) = outputs_by_group(cut.prefix, load, some, stored_layouts, 16)
    assert torch.equal(few, whole[torch.from_numpy(some)])
    torch.testing.assert_close(stored_layouts[0].from_memory_order(few), model[1](model[0](images))[torch.from_numpy(some)])


def test_groups_are_neither_small_nor_much_larger_than_what_a_client_holds():
    assert [group_for(count) for count in (3, 16, 17, 33, 52.6, 65, 100, 1000)] == [16, 16, 24, 40, 56, 40, 56, 64]


def test_a_fingerprint_tells_parts_apart():
    arrays = [np.zeros(4, np.uint8), np.zeros((2, 2), np.uint8), np.zeros(1, np.float32), torch.ones(1)]
    prints = {fingerprint(*parts) for parts in (["ab", "c"], ["a", "bc"], *([array] for array in arrays))}
    assert len(prints) == 6


LAYERS = ["--layers", "2", "--budget", "none", "--method", "exact", "--method", "hosvd:variance=0.8", "--replan", "never"]


@pytest.fixture(scope="module")
def without(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("without") / "run"
    assert main([*TINY, *LAYERS, "--cache-size", "none", "--out", str(folder)]) == 0
    return timeless(folder)


@pytest.mark.parametrize("size", ["1GB", "20KB"])
def test_a_run_has_the_same_rows_with_a_new_cache_a_warm_one_and_none(size, without, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    for name in ("new", "warm"):
        assert main([*TINY, *LAYERS, "--cache-size", size, "--out", str(tmp_path / name)]) == 0
        assert timeless(tmp_path / name) == without
    files = [file for file in (tmp_path / "cache" / "prefix").rglob("*") if file.is_file()]
    assert files
    assert sum(file.stat().st_size for file in files) <= (10**9 if size == "1GB" else 20_000)


MIXED = [*TINY, "--layers", "auto", "--budget", "420KB:2,none:2", "--method", "vanilla", "--lr", "0.5", "--rounds", "3"]


def test_what_one_plan_freezes_and_another_trains_is_never_kept(tmp_path):
    for size in ("4GB", "none"):
        assert main([*MIXED, "--cache-size", size, "--out", str(tmp_path / size)]) == 0
    rows = timeless(tmp_path / "none")
    assert len({row["trained_layers"] for row in rows if row["kind"] == "client"}) > 1
    assert timeless(tmp_path / "4GB") == rows
    names = [sorted((tmp_path / size / "checkpoints").iterdir()) for size in ("4GB", "none")]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*names, strict=True))


@pytest.mark.parametrize("change", [["--resolution", "40"], ["--seed", "1"], ["--width", "0.35"], ["--max-examples", "170"]])
def test_other_weights_data_or_resolution_never_meet_a_stale_value(change, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    settings = [*TINY, "--layers", "2", "--budget", "none", "--method", "exact", "--rounds", "1"]
    assert main([*settings, "--out", str(tmp_path / "first")]) == 0
    for size in ("1GB", "none"):
        assert main([*settings, *change, "--cache-size", size, "--out", str(tmp_path / size)]) == 0
    assert timeless(tmp_path / "1GB") == timeless(tmp_path / "none")


def test_the_peak_is_the_devices_whether_its_frozen_part_ran_or_not(tmp_path):
    assert main([*TINY, *LAYERS, "--out", str(tmp_path / "run")]) == 0
    run = fedact.load_run(tmp_path / "run")
    clients = run.clients[run.clients["method"] == "exact"]
    # A plan's peak is measured on the whole model, from the images on.
    assert clients["peak_bytes"].max() == run.plans["exact"]["none"]["peak_bytes"]


def test_a_disk_without_a_place_for_it_only_takes_longer(tmp_path, monkeypatch, caplog, without):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    # Another size than the other tests': an experiment that this process still has is not made again.
    assert main([*TINY, *LAYERS, "--cache-size", "3GB", "--out", str(tmp_path / "run")]) == 0
    assert timeless(tmp_path / "run") == without
    assert "no prefix cache" in caplog.text


@pytest.mark.parametrize("size", ["0", "much", "-1KB"])
def test_a_size_that_is_none_is_one_line(size, capsys):
    assert main([*TINY, "--cache-size", size]) == 2
    error = capsys.readouterr().err
    assert "--cache-size" in error
    assert error.count("\n") == 1
