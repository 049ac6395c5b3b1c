"""Examples of every kind as a model's input, against plain numpy."""

import numpy as np
import pytest
import torch

from fedact.data import Preprocessing
from fedact.data.examples import Rows
from fedact.data.standardization import standardized

HALF = (0.5, 0.5, 0.5)
PLAIN = Preprocessing(8, 8, HALF, HALF)
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)


def same(x, expected):
    torch.testing.assert_close(x, torch.from_numpy(np.ascontiguousarray(expected, np.float32)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "unit"),
    [
        (PICTURES, PICTURES / 255),
        (PICTURES.astype(np.uint16) * 257, PICTURES / 255),
        ((PICTURES / 255).astype(np.float32), PICTURES / 255),
        (PICTURES[..., :1], PICTURES[..., [0, 0, 0]] / 255),
        ((PICTURES[..., :1] / 255).astype(np.float32), PICTURES[..., [0, 0, 0]] / 255),
    ],
)
def test_pictures_of_every_kind_are_scaled_to_their_unit(images, unit):
    preprocessing = standardized(PLAIN, images)
    assert preprocessing == PLAIN
    same(preprocessing(images), (unit.transpose(0, 3, 1, 2) - 0.5) / 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_floats_are_standardised_by_channel(channels):
    images = (PICTURES[..., :channels] * [[3.0, 1.0, 0.1][:channels]] - 40).astype(np.float32)
    preprocessing = standardized(PLAIN, images)
    flat = images.reshape(-1, channels).astype(np.float64)
    expected = ((images - flat.mean(0)) / flat.std(0)).transpose(0, 3, 1, 2)
    same(preprocessing(images), np.broadcast_to(expected, (7, 3, 8, 8)))


@pytest.mark.parametrize("shape", [(50, 6, 20), (50, 4), (50, 2, 3, 5)])
def test_series_are_standardised_by_channel_and_otherwise_left_as_they_are(shape, monkeypatch):
    series = (RANDOM.normal(size=shape) * 0.01 + 5000).astype(np.float32)
    series[:, 1] = 7
    other = tuple(place for place in range(len(shape)) if place != 1)
    exact = series.astype(np.float64)
    deviation = np.where(np.arange(shape[1]) == 1, 1, exact.std(other))
    by_channel = [1, -1, *[1] * (len(shape) - 2)]
    whole = standardized(PLAIN, series)
    expected = (exact - exact.mean(other).reshape(by_channel)) / deviation.reshape(by_channel)
    # In float32 an offset of 5,000 leaves some thousandths of a deviation.
    torch.testing.assert_close(whole(series).double(), torch.from_numpy(expected), rtol=0, atol=0.05)
    monkeypatch.setattr("fedact.data.kinds.BYTES_AT_ONCE", 300)
    in_pieces = standardized(PLAIN, Rows(series, np.arange(50)))
    assert in_pieces.mean == pytest.approx(whole.mean, rel=1e-12)
    assert in_pieces.std == pytest.approx(whole.std, rel=1e-12)


def test_an_input_has_the_shape_that_its_preprocessing_makes():
    for images in (PICTURES, PICTURES[..., :1], np.zeros((2, 6, 9), np.float32), np.zeros((2, 5), np.float32)):
        preprocessing = standardized(Preprocessing(4, 5, HALF, HALF), images)
        assert preprocessing(images).shape[1:] == preprocessing.input_shape(images.shape)
