"""A worker's large answers: equal to the bit, their own once they are read, and in one file that grows."""

import numpy as np
import pytest
import torch

from fedact.processes import tray as trays
from fedact.processes.tray import FEWEST_BYTES, Packed, Tray, TrayReader

LARGE = FEWEST_BYTES // 4 + 1
"""Numbers of float32."""


def values(size):
    return {"weights": torch.arange(size, dtype=torch.float32), "none": np.empty((0, 3)), "text": "x"}


def equal(found, expected):
    return torch.equal(found["weights"], expected["weights"]) and found["none"].shape == (0, 3) and found["text"] == "x"


def test_large_values_lie_in_one_file_that_grows_and_small_ones_do_not(tmp_path):
    tray, reader = Tray(tmp_path), TrayReader()
    for size, files in ((10, 0), (LARGE, 1), (5, 1), (2 * LARGE, 1), (2**20, 2), (LARGE, 2)):
        packed = tray.pack(values(size))
        assert bool(packed.file) == (size >= LARGE)
        assert len(packed.head) < 2000
        assert equal(reader.unpack(packed), values(size))
        assert len(list(tmp_path.iterdir())) == files
    reader.close()


def test_what_was_read_stays_when_the_tray_takes_the_next(tmp_path):
    tray, reader = Tray(tmp_path), TrayReader()
    first = reader.unpack(tray.pack(values(LARGE)))
    first["weights"][0] = 7
    second = reader.unpack(tray.pack({**values(LARGE), "weights": torch.zeros(LARGE)}))
    assert (float(first["weights"][0]), float(first["weights"][-1])) == (7, LARGE - 1)
    assert not second["weights"].any()
    reader.close()


@pytest.mark.parametrize("full", [False, True])
def test_without_a_folder_or_room_everything_goes_through_the_pipe(tmp_path, monkeypatch, full):
    def no_room(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(trays, "reserve", no_room)
    packed = Tray(tmp_path if full else None).pack(values(LARGE))
    assert isinstance(packed, Packed)
    assert not packed.file
    assert equal(TrayReader().unpack(packed), values(LARGE))
