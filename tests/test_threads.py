"""Small steps run on one thread."""

import pytest
import torch

from fedact.threads import FEW_PIXELS, threads_for


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
        ((FEW_PIXELS, 784), 1),
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
