"""Arrays, tensors and torch data sets become examples; what is none is refused in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from fedact.config.errors import ConfigError
from fedact.data import Preprocessing
from fedact.data.own import Arrays, as_arrays, source_of
from fedact.data.standardization import standardized

RANDOM = np.random.default_rng(0)
SERIES, VECTORS = RANDOM.normal(size=(6, 3, 20)), RANDOM.normal(size=(6, 9))
RGB = RANDOM.integers(0, 256, (6, 8, 10, 3)).astype(np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def made(x, y=Y, clients=None):
    return source_of(Arrays(x, y, clients), Arrays(x[:2], y[:2], None if clients is None else clients[:2]), "these")


@pytest.mark.parametrize(
    ("x", "dtype", "kept"),
    [
        (RGB, np.uint8, RGB),
        (RGB.transpose(0, 3, 1, 2), np.uint8, RGB),
        (RGB[..., 0], np.uint8, RGB[..., :1]),
        (RGB.astype(np.int64), np.uint8, RGB),
        (RGB.astype(np.int32) * 257, np.uint16, RGB.astype(np.uint16) * 257),
        (RGB.astype(">u2"), np.uint16, RGB.astype(np.uint16)),
        (RGB / 255, np.float32, (RGB / 255).astype(np.float32)),
        ((RGB / 255).transpose(0, 3, 1, 2), np.float32, (RGB / 255).astype(np.float32)),
        (SERIES, np.float32, SERIES.astype(np.float32)),
        (SERIES[:, :2, :, None].repeat(4, 3), np.float32, SERIES.astype(np.float32)[:, :2, :, None].repeat(4, 3)),
        (VECTORS, np.float32, VECTORS.astype(np.float32)),
        (np.arange(12).reshape(6, 2), np.float32, np.arange(12.0).reshape(6, 2)),
    ],
)
def test_inputs_are_kept_as_pictures_or_as_series(x, dtype, kept):
    images = made(x).train.images
    assert images.dtype == dtype
    assert np.array_equal(images, kept)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.array([[None]] * 6), "whole numbers or floats, not object"),
        (np.array([["a"]] * 6), "whole numbers or floats"),
        (np.zeros((6, 2), complex), "whole numbers or floats"),
        (np.zeros((6, 2), bool), "whole numbers or floats"),
        (np.zeros(6), "2 to 4 dimensions, not 1"),
        (np.zeros((6, 1, 2, 3, 4)), "2 to 4 dimensions, not 5"),
        (np.zeros((6, 0, 4)), "x_train of these is empty"),
        (np.zeros((6, 4, 5, 2), int), "must be pictures"),
        (np.full((6, 3, 20), -1), "from -1 to -1"),
        (np.full((6, 3, 20), 2**16), "from 65,536"),
        (np.where(np.arange(6)[:, None] == 4, np.nan, VECTORS), "not finite in float32, in example 4"),
        (np.where(np.arange(6)[:, None] == 3, 1e300, VECTORS), "not finite in float32, in example 3"),
        (np.zeros((6, 1, 60, 3)), "no side is 50 others long"),
    ],
)
def test_what_is_no_input_is_refused(x, said):
    with pytest.raises(ConfigError, match=said):
        made(x)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": Y[:5]}, "y_train of these must be 6 whole numbers or texts"),
        ({"y": Y / 1}, "y_train of these must be 6 whole numbers"),
        ({"y": np.array([*"abcde", " "])}, "empty text, of example 5"),
        ({"y": np.array([b"\xff"] * 6)}, "no text in UTF-8"),
        ({"y": np.array(["\ud800"] * 6)}, "not Unicode"),
        ({"clients": np.arange(7)}, "client_train of these must be 6"),
        ({"clients": np.zeros((6, 1), int)}, "client_train of these must be 6"),
        ({"x": VECTORS}, "must be alike"),
        ({"x": RGB}, "must be alike"),
        ({"y": Y - 1}, "y_train of these holds the label -1, which is not between 0"),
        ({"y": Y + 7}, "no label in y_test of these is one in y_train: 0, 1"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, said):
    given = {"x": SERIES, "y": Y, **changes}
    with pytest.raises(ConfigError, match=said):
        source_of(Arrays(**given), Arrays(SERIES, Y), "these")
    with pytest.raises(ConfigError, match="too many classes"):
        source_of(Arrays(np.zeros((2000, 2)), np.arange(2000)), Arrays(np.zeros((1, 2)), np.array([2001])), "these")


def test_texts_name_classes_and_clients():
    source = source_of(
        Arrays(SERIES, np.array([*"babcab"]), np.array(["anna", "zoe", "ben", "anna", "zoe", "ben"])),
        Arrays(SERIES[:3], np.array([b"d", b"a", b"b"]), np.array(["mia", "ben", "ben"])),
        "these",
    )
    assert (source.classes, source.names) == (4, ("a", "b", "c", "d"))
    assert source.train.labels.tolist() == [1, 0, 1, 2, 0, 1]
    assert source.test.labels.tolist() == [3, 0, 1]
    assert source.client_names == ("anna", "ben", "mia", "zoe")
    assert source.train.clients.tolist() == [0, 3, 1, 0, 3, 1]
    part = source.train.subset(np.array([1, 2, 4])).take(np.array([2, 0]))
    assert (part.labels.tolist(), part.clients.tolist()) == ([0, 0], [3, 3])


def test_a_class_that_is_only_tested_is_named(caplog):
    source_of(Arrays(SERIES, Y), Arrays(SERIES[:2], np.array([0, 9])), "these")
    assert caplog.messages[0] == "these: no training example has the label 9, which the test examples have"


def test_numbered_clients_are_named_by_their_numbers():
    source = made(SERIES, clients=np.array([7, 7, 3, 3, 9, 9]))
    assert source.client_names == ("3", "7", "9")
    assert source.train.clients.tolist() == [1, 1, 0, 0, 2, 2]
    assert made(SERIES).train.clients is None


class Pairs:
    """A map-style data set."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Endless(Pairs):
    """A data set that does not say how long it is."""

    def __len__(self):
        raise NotImplementedError


class Torn(Pairs):
    """A data set whose second item is broken."""

    def __getitem__(self, row):
        if row:
            raise OSError("no such\npicture")
        return SERIES[0], 0


@pytest.mark.parametrize(
    "data",
    [
        (SERIES, Y),
        (torch.from_numpy(SERIES), torch.from_numpy(Y)),
        (SERIES.tolist(), Y.tolist()),
        TensorDataset(torch.from_numpy(SERIES), torch.from_numpy(Y)),
        Pairs([(x, int(y)) for x, y in zip(SERIES, Y, strict=True)]),
        [(torch.from_numpy(x), torch.tensor(y)) for x, y in zip(SERIES, Y, strict=True)],
    ],
)
def test_every_kind_of_data_gives_the_same_arrays(data):
    found = as_arrays(data)
    assert np.array_equal(found.x, SERIES)
    assert np.array_equal(found.y, Y)
    assert found.clients is None


def test_items_may_be_pictures_with_texts_and_clients():
    items = [(Image.fromarray(x), "cat" if y else "dog", f"user {y}") for x, y in zip(RGB, Y, strict=True)]
    found = as_arrays(Pairs(items))
    assert np.array_equal(found.x, RGB)
    assert found.y.tolist() == ["cat" if y else "dog" for y in Y]
    assert found.clients.tolist() == [f"user {y}" for y in Y]
    grey = as_arrays(Pairs([(Image.fromarray(x[..., 0]), y) for x, y in zip(RGB, Y, strict=True)]))
    assert np.array_equal(made(*grey[:2]).train.images, RGB[..., :1])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (iter([]), "not list_iterator"),
        ({"x": SERIES}, "not dict"),
        (5, "not int"),
        ((SERIES,), "not 1 values"),
        ([], "is empty"),
        ([3], r"items of the data must be .* not 3 \(item 0\)"),
        ([(SERIES[0], 1), (SERIES[0, :2], 1)], "item 1 of the data is float64"),
        ([(SERIES[0], 1), (SERIES[0], 1, 2)], "item 1 of the data has 3 values"),
        (([[1, 2], [3]], [0, 1]), "x of the data is no array"),
        (Endless([]), "does not say how long it is: NotImplementedError"),
        (Torn([0, 1]), "item 1 of the data cannot be read: OSError: no such picture"),
        ([(Image.new("F", (4, 4)), 1)], "x of item 0 of the data is a picture of mode F"),
    ],
)
def test_what_holds_no_pairs_is_refused(data, said):
    with pytest.raises(ConfigError, match=said) as caught:
        as_arrays(data)
    assert "\n" not in str(caught.value)


def test_a_large_data_set_is_collected_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr("fedact.data.items.ON_DISK_FROM", 100)
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    found = as_arrays(Pairs(list(zip(SERIES, Y, strict=True))))
    assert isinstance(found.x, np.memmap)
    assert np.array_equal(found.x, SERIES)
    assert not list((tmp_path / "cache").iterdir())


@given(
    st.sampled_from(["u1", "u2", ">u2", "i1", "i4", "u8", "f2", "f4", ">f8", "b1", "c8", "O", "U2", "M8[s]"]),
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(-300, 70_000),
)
def test_any_array_is_kept_as_a_model_takes_it_or_refused_in_one_line(kind, shape, value):
    x = np.zeros(shape, kind)
    with np.errstate(all="ignore"):
        x[...] = np.array(value).astype(kind) if kind != "O" else value
    y = np.zeros(len(x) if shape else 0, int)
    try:
        images = source_of(Arrays(x, y), Arrays(x, y), "these").train.images
    except ConfigError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    if said:
        return
    plain = Preprocessing(4, 4, (0.5,) * 3, (0.5,) * 3)
    inputs = standardized(plain, images)(images[np.arange(len(images))])
    assert images.dtype in (np.uint8, np.uint16, np.float32)
    assert inputs.dtype == torch.float32
    assert inputs.isfinite().all()
    assert inputs.shape == (len(x), *standardized(plain, images).input_shape(images.shape))
