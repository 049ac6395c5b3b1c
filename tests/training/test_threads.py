"""Every process of a run computes with as many threads, and small steps on one."""

import pytest
import torch

from fedact.config.loading import make_config, read_toml
from fedact.simulate import main
from fedact.training.threads import DEFAULT_THREADS, SMALL_BATCH_PIXELS, threads_for
from fedact.training.workspace import prepare


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("shape", "threads"),
    [
        ((2, 3, 100, 100), 1),
        ((2, 3, 101, 100), 2),
        ((32, 3, 224, 224), 2),
        ((SMALL_BATCH_PIXELS, 784), 1),
        ((4,), 1),
        ((0, 3, 8, 8), 1),
    ],
)
def test_few_pixels_run_on_one_thread(shape, threads):
    with threads_for(torch.empty(shape)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_as_many_threads_as_before_go_on_after_an_error():
    with pytest.raises(ZeroDivisionError), threads_for(torch.empty(1, 3, 8, 8)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_every_process_of_a_run_computes_with_the_threads_that_the_config_says(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    prepare(make_config({"dataset": "synthetic", "weights": "none", "clients": 2, "threads": 3}))
    assert seen[0] == 3


def test_threads_are_resolved_before_the_run_and_kept(tmp_path):
    small = [
        "--dataset",
        "synthetic",
        "--weights",
        "none",
        "--clients",
        "2",
        "--rounds",
        "0",
        "--method",
        "exact",
        "--layers",
        "0",
    ]
    assert main([*small, "--out", str(tmp_path / "run")]) == 0
    assert make_config(read_toml(tmp_path / "run" / "config.toml")).threads == DEFAULT_THREADS == 1
