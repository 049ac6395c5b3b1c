import hashlib
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision import datasets

from fedact.config.errors import ConfigError
from fedact.data import DATASETS, Examples, Loader, Preprocessing, Request
from fedact.processes.transfer import pack, unpack

HALF = (0.5, 0.5, 0.5)


def request(path=None, train=None, test=None, seed=0) -> Request:
    return Request(path, train, test, np.random.default_rng(seed))


def rows(examples: Examples) -> list[bytes]:
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(examples.images, examples.labels, strict=True))


def test_digits_are_scikit_learns():
    source = DATASETS["digits"](request())
    bunch = load_digits()
    gray = np.round(bunch.images * 255 / 16).astype(np.uint8)
    expected = Examples(np.repeat(gray[..., None], 3, axis=3), bunch.target)
    both = Examples(
        np.concatenate([source.train.images, source.test.images]), np.concatenate([source.train.labels, source.test.labels])
    )
    assert rows(both) == rows(expected)
    assert (len(source.train), len(source.test), source.classes) == (1348, 449, 10)


def test_the_digits_test_set_is_stratified_and_follows_the_seed():
    first, same, other = (DATASETS["digits"](request(seed=seed)).test for seed in (0, 0, 1))
    assert np.bincount(first.labels).min() >= 43
    assert np.array_equal(first.images, same.images)
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize(("train", "test", "sizes"), [(None, None, (2000, 500)), (33, 7, (33, 7)), (1, 1, (1, 1))])
def test_synthetic_makes_as_many_as_were_asked_for(train, test, sizes):
    source = DATASETS["synthetic"](request(train=train, test=test))
    assert (len(source.train), len(source.test)) == sizes
    assert source.train.images.shape[1:] == (32, 32, 3)
    assert (source.train.images.dtype, source.train.labels.dtype) == (np.uint8, np.int64)
    assert np.ptp(np.bincount(source.train.labels, minlength=10)) <= 1


def test_synthetic_follows_the_seed():
    first, same, other = (DATASETS["synthetic"](request(train=20, test=2, seed=seed)).train.images for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def arrays(**changes):
    random = np.random.default_rng(0)
    good = {
        "x_train": random.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8), "y_train": np.array([0, 1, 2, 0, 1, 2], np.int32),
        "x_test": random.integers(0, 256, (2, 5, 4, 3)).astype(np.uint8), "y_test": np.array([3, 0], np.uint8),
    }  # fmt: skip
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_back_its_arrays(tmp_path, save):
    save(tmp_path / "a.npz", **arrays())
    source = DATASETS["npz"](request(tmp_path / "a.npz"))
    assert np.array_equal(source.train.images, arrays()["x_train"])
    assert np.array_equal(source.test.labels, [3, 0])
    assert source.train.labels.dtype == source.test.labels.dtype == np.int64
    assert source.classes == 4


@pytest.mark.parametrize("kind", ["pictures", "series", "floats64", "compressed"])
def test_a_large_npz_is_mapped_where_it_lies_as_it_is_kept(tmp_path, kind, monkeypatch):
    pictures = arrays()["x_train"], arrays()["x_test"]
    wanted = pictures if kind in ("pictures", "compressed") else [part[..., 0].astype(np.float64) / 7 for part in pictures]
    kept = [part.astype(np.float32) for part in wanted] if kind == "series" else wanted
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(tmp_path / "a.npz", **arrays(x_train=kept[0], x_test=kept[1]))
    monkeypatch.setattr("fedact.data.readers.npz.MAPPED_FROM", 100)
    source = DATASETS["npz"](request(tmp_path / "a.npz"))
    assert isinstance(source.train.images, np.memmap) == (kind in ("pictures", "series"))
    assert np.array_equal(source.train.images, kept[0].astype(source.train.images.dtype))
    # To other processes a map goes by its file's name.
    assert len(pack(source.train)) < 1500
    assert np.array_equal(unpack(pack(source.train)).images, source.train.images)


def test_an_npz_may_say_whose_each_example_is(tmp_path):
    owners = {"client_train": np.array([*"ccabba"]), "client_test": np.array([*"ad"])}
    np.savez(tmp_path / "a.npz", **arrays(**owners))
    source = DATASETS["npz"](request(tmp_path / "a.npz"))
    assert source.client_names == ("a", "b", "c", "d")
    assert source.train.clients.tolist() == [2, 2, 0, 1, 1, 0]
    assert source.test.clients.tolist() == [0, 3]


def test_npz_labels_with_gaps_are_classes_without_and_their_names(tmp_path, caplog):
    labels = {"y_train": np.array([10, 30, 20, 10, 30, 20]), "y_test": np.array([40, 10])}
    np.savez(tmp_path / "a.npz", **arrays(**labels))
    with caplog.at_level("INFO", "fedact"):
        source = DATASETS["npz"](request(tmp_path / "a.npz"))
    assert (source.classes, source.names) == (4, ("10", "20", "30", "40"))
    assert source.train.labels.tolist() == [0, 2, 1, 0, 2, 1]
    assert source.test.labels.tolist() == [3, 0]
    assert "a.npz has the ids 10, 20, 30, 40: they are classes 0 to 3, named by their ids" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test"),
        ({"x_train": np.zeros((6, 5, 4, 3))}, "must be alike, not float32"),
        ({"x_train": np.zeros((6, 5, 4, 1), np.uint8)}, "must be alike, not uint8"),
        ({"x_train": np.zeros((6, 5, 4, 2), np.uint8)}, "must be pictures"),
        ({"x_train": np.array([[{}]] * 6)}, "cannot be read"),
        ({"client_train": np.array([None] * 6)}, "cannot be read"),
        ({"client_train": np.arange(5)}, "client_train of .* must be 6"),
        ({"x_train": np.zeros((6, 0, 4, 3), np.uint8)}, "x_train"),
        ({"y_train": np.zeros(6)}, "whole numbers"),
        ({"y_train": np.zeros(6, bool)}, "whole numbers"),
        ({"y_train": np.zeros(5, int)}, "6 whole numbers"),
        ({"y_train": np.zeros((6, 1), int)}, "6 whole numbers"),
        ({"y_train": np.array([-1, 0, 0, 0, 0, 0])}, "between 0"),
        ({"y_train": np.full(6, 2**63, np.uint64)}, "y_train"),
        ({"y_train": np.array([None] * 6)}, "cannot be read"),
        ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "empty"),
    ],
)
def test_npz_that_is_no_data_set_is_refused(tmp_path, changes, said):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(ConfigError, match=said):
        DATASETS["npz"](request(tmp_path / "a.npz"))


@given(st.integers(0, 3000), st.integers(1, 400), st.binary(min_size=1, max_size=1))
def test_a_damaged_npz_is_read_or_refused(tmp_path_factory, position, length, byte):
    file = tmp_path_factory.getbasetemp() / "damaged.npz"
    np.savez_compressed(file, **arrays())
    content = bytearray(file.read_bytes())
    content[position : position + length] = byte * len(content[position : position + length])
    file.write_bytes(content)
    try:
        DATASETS["npz"](request(file))
    except ConfigError:
        return


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.npz"):
        DATASETS["npz"](request(tmp_path / "a.npz"))


def test_an_npy_file_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"a\.npy"):
        DATASETS["npz"](request(tmp_path / "a.npy"))


CIFAR = {
    "cifar10": (datasets.CIFAR10, "labels", "label_names", 10),
    "cifar100": (datasets.CIFAR100, "fine_labels", "fine_label_names", 100),
}


def tiny_cifar(root, monkeypatch, name: str) -> dict[str, np.ndarray]:
    """Write files of 4 images in torchvision's layout, and give torchvision their checksums."""
    kind, key, names, classes = CIFAR[name]
    folder, random, written = root / kind.base_folder, np.random.default_rng(0), {}
    folder.mkdir(parents=True)

    def write(file, value) -> str:
        (folder / file).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    for part in ("train_list", "test_list"):
        entries = []
        for file, _ in getattr(kind, part):
            data = random.integers(0, 256, (4, 3072)).astype(np.uint8)
            entries.append([file, write(file, {"data": data, key: [0, 1, 2, classes - 1]})])
            written[file] = data
        monkeypatch.setattr(kind, part, entries)
    meta = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(meta, {names: [str(label) for label in range(classes)]})})
    return written


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_from_torchvisions_layout(tmp_path, monkeypatch, name):
    written = tiny_cifar(tmp_path, monkeypatch, name)
    source = DATASETS[name](request(tmp_path))
    kind, _, _, classes = CIFAR[name]
    files = [file for file, _ in kind.train_list]
    expected = np.concatenate([written[file] for file in files]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(source.train.images, expected)
    assert source.train.labels.tolist() == [0, 1, 2, classes - 1] * len(files)
    assert (len(source.test), source.classes, source.train.labels.dtype) == (4, classes, np.int64)
    assert source.names == tuple(str(label) for label in range(classes))
    (tmp_path / kind.base_folder / kind.meta["filename"]).write_bytes(b"damaged")
    assert DATASETS[name](request(tmp_path)).names == ()


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("error", [URLError("no network"), ConnectionResetError("gone"), RuntimeError("wrong checksum")])
def test_missing_cifar_names_what_to_put_where(tmp_path, monkeypatch, name, error):
    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fail)
    with pytest.raises(ConfigError) as caught:
        DATASETS[name](request(tmp_path / "nothing"))
    words = ("python.tar.gz", CIFAR[name][0].base_folder, str(tmp_path / "nothing"))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", CIFAR)
def test_an_incomplete_cifar_is_refused_and_says_what_to_put_where(tmp_path, monkeypatch, name):
    tiny_cifar(tmp_path, monkeypatch, name)
    (tmp_path / CIFAR[name][0].base_folder / CIFAR[name][0].test_list[0][0]).write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="not complete") as caught:
        DATASETS[name](request(tmp_path))
    assert f"put {CIFAR[name][0].filename} there" in str(caught.value)


def test_a_gray_value_is_normalised_by_hand():
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1).repeat(3, 3)
    x = Preprocessing(1, 1, (0.5, 0.0, 0.2), (0.5, 1.0, 0.1))(images)
    torch.testing.assert_close(x[:, :, 0, 0], torch.tensor([[-1.0, 0, -2], [-0.6, 0.2, 0], [1, 1, 8]]))


def test_images_of_the_right_size_are_only_normalised():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    expected = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 * 2 - 1
    torch.testing.assert_close(Preprocessing(8, 8, HALF, HALF)(images), expected)


def test_resizing_is_torchs_antialiased_bilinear_of_the_shorter_side():
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3)).astype(np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = F.interpolate(x, (10, 15), mode="bilinear", antialias=True)[..., 1:9, 3:11] * 2 - 1
    torch.testing.assert_close(Preprocessing(8, 10, HALF, HALF)(images), expected)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 8))
def test_every_image_becomes_a_square_of_the_resolution(height, width, resolution, more):
    images = np.full((1, height, width, 3), 255, np.uint8)
    x = Preprocessing(resolution, resolution + more, HALF, HALF)(images)
    assert x.shape == (1, 3, resolution, resolution)
    torch.testing.assert_close(x, torch.ones_like(x))


def test_a_loader_gives_inputs_and_labels_in_the_order_asked_for():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    loader = Loader(Examples(images, np.arange(4)), Preprocessing(1, 1, (0.0,) * 3, (1.0,) * 3))
    x, y = loader(np.array([3, 0, 3]))
    assert (len(loader), y.tolist()) == (4, [3, 0, 3])
    torch.testing.assert_close(x[:, 0, 0, 0] * 255, torch.tensor([3.0, 0, 3]))


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_as_python_2_pickled_it_is_read_as_torchvision_reads_it(tmp_path, monkeypatch, name):
    """The published files are of protocol 2, with the pixels as one raw string; torchvision unpickles them."""
    kind, key, *_, classes = CIFAR[name]
    tiny_cifar(tmp_path, monkeypatch, name)
    random = np.random.default_rng(1)
    for part in ("train_list", "test_list"):
        entries = []
        for file, _ in getattr(kind, part):
            content = as_python_2_did(random.integers(0, 256, (1200, 3072)).astype(np.uint8), key, classes)
            (tmp_path / kind.base_folder / file).write_bytes(content)
            entries.append([file, hashlib.md5(content).hexdigest()])
        monkeypatch.setattr(kind, part, entries)
    found = DATASETS[name](request(tmp_path))
    for examples, train in ((found.train, True), (found.test, False)):
        theirs = kind(tmp_path, train=train)
        assert np.array_equal(examples.images, theirs.data)
        assert examples.labels.tolist() == theirs.targets


def as_python_2_did(data: np.ndarray, key: str, classes: int) -> bytes:
    """Return a batch in the operations of Python 2's cPickle: labels in lists of a thousand, an ndarray's state."""

    def text(word: str) -> bytes:
        return b"U" + bytes([len(word)]) + word.encode()

    labels = [position % classes for position in range(len(data))]
    thousands = [labels[start : start + 1000] for start in range(0, len(labels), 1000)]
    numbers = b"".join(b"(" + b"".join(b"K" + bytes([label]) for label in some) + b"e" for some in thousands)
    shape = b"M" + len(data).to_bytes(2, "little") + b"M\x00\x0c\x86"
    kind = (
        b"cnumpy\ndtype\nq\x09"
        + text("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    raw = b"T" + data.nbytes.to_bytes(4, "little") + data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85" + text("b") + b"\x87R(K\x01"
    names = b"](" + text("leptodactylus_pentadactylus_s_000004.png") * 3 + b"e"
    pairs = text("batch_label") + b"q\x02" + text("training batch 1 of 5") + text(key) + b"q\x04]q\x05" + numbers
    return (
        b"\x80\x02}q\x01("
        + pairs
        + text("data")
        + array
        + shape
        + kind
        + b"\x89"
        + raw
        + b"tb"
        + text("filenames")
        + names
        + b"u."
    )


def test_a_batch_that_would_run_code_is_only_read(tmp_path, monkeypatch):
    tiny_cifar(tmp_path, monkeypatch, "cifar10")
    file, _ = datasets.CIFAR10.test_list[0]
    place = tmp_path / datasets.CIFAR10.base_folder / file

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "code ran",))

    batch = {"x": Payload(), "data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 9]}
    place.write_bytes(pickle.dumps(batch))
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[file, hashlib.md5(place.read_bytes()).hexdigest()]])
    assert DATASETS["cifar10"](request(tmp_path)).test.labels.tolist() == [0, 1, 2, 9]
    assert not (tmp_path / "code ran").exists()
