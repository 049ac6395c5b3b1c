"""Picture files become pixels once, and whatever happens meanwhile, no others."""

import hashlib
import logging
import os
import signal
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from fedact.config.errors import ConfigError
from fedact.data import Examples, Rows, Source, decode_files, in_blocks
from fedact.data import decoded_cache as decoded
from fedact.data.decoded_cache import decoded_rows
from fedact.data.pictures import Pictures, decode
from fedact.training.prefix_cache import fingerprint
from tests.support.picture_sets import write_picture


def random_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path) -> Pictures:
    files = tuple(f"{number:02d}.png" for number in range(12))
    for number, file in enumerate(files):
        write_picture(tmp_path / "data" / file, number)
    return Pictures(tmp_path / "data", files, 16)


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """The files that are decoded from now on."""
    names: list[str] = []

    def counting(file: Path, side: int) -> np.ndarray:
        names.append(file.name)
        return decode(file, side)

    monkeypatch.setattr("fedact.data.pictures.decode", counting)
    return names


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 64))
def test_pictures_are_scaled_and_cut_as_torchvision_does(tmp_path_factory, width, height, side):
    file = tmp_path_factory.getbasetemp() / "picture.png"
    random_picture(width, height).save(file)
    theirs = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(side)])(Image.open(file))
    assert np.abs(decode(file, side).astype(int) - np.asarray(theirs)).max() <= 1


def test_a_picture_of_the_right_size_is_left_as_it_is(tmp_path):
    random_picture(24, 24).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 24), np.asarray(random_picture(24, 24)))


def test_a_long_strip_is_not_scaled_as_a_whole(tmp_path):
    Image.new("RGB", (60_000, 1), (10, 20, 30)).save(tmp_path / "strip.png")
    assert (decode(tmp_path / "strip.png", 224) == (10, 20, 30)).all()


@pytest.mark.parametrize(("mode", "expected"), [("L", 77), ("P", 51), ("RGBA", 77), ("LA", 77), ("CMYK", 77), ("1", 0)])
def test_every_mode_of_eight_bits_becomes_rgb(tmp_path, mode, expected):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (20, 30), (77, 77, 77)).convert(mode, dither=Image.Dither.NONE).save(file)
    assert (decode(file, 10) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(tmp_path, orientation):
    upright = np.asarray(random_picture(24, 24))
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2)}
    turns |= {6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turns[orientation])).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", 24), upright)


def test_pictures_are_an_array_of_what_is_decoded(pictures):
    assert (pictures.shape, pictures.dtype, len(pictures)) == ((12, 16, 16, 3), np.uint8, 12)
    expected = np.stack([decode(pictures.root / file, 16) for file in pictures.files])
    assert np.array_equal(pictures[:], expected)
    assert np.array_equal(pictures[np.array([3, 0, 3])], expected[[3, 0, 3]])
    assert pictures[np.arange(0)].shape == (0, 16, 16, 3)


def test_kept_pictures_are_those_of_the_files_and_are_decoded_once(pictures, seen, tmp_path):
    rows = np.array([7, 2, 9])
    expected = pictures[rows]
    seen.clear()
    first = decoded_rows(pictures, rows, tmp_path / "cache")
    assert sorted(seen) == ["02.png", "07.png", "09.png"]
    more = decoded_rows(pictures, np.array([2, 5]), tmp_path / "cache")
    assert sorted(seen) == ["02.png", "05.png", "07.png", "09.png"]
    assert np.array_equal(np.asarray(first), expected)
    assert np.array_equal(np.asarray(more), pictures[np.array([2, 5])])


def test_no_rows_are_kept_as_no_rows(pictures, tmp_path, seen):
    assert np.asarray(decoded_rows(pictures, np.arange(0), tmp_path / "cache")).shape == (0, 16, 16, 3)
    assert seen == []


def test_only_what_a_run_uses_takes_room(pictures, tmp_path):
    big = Pictures(pictures.root, pictures.files, 512)
    decoded_rows(big, np.array([3]), tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*/pixels")
    assert file.stat().st_size == 12 * 512 * 512 * 3
    assert file.stat().st_blocks * 512 < 2 * 512 * 512 * 3


def test_kept_pictures_lie_on_disk_and_cannot_be_changed(pictures, tmp_path):
    rows = decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    assert isinstance(rows.array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows.array[0] = 0


@pytest.mark.parametrize("change", ["pixels", "name", "side", "time"])
def test_what_changed_is_decoded_anew(pictures, tmp_path, change):
    rows, cache = np.arange(12), tmp_path / "cache"
    decoded_rows(pictures, rows, cache)
    first = pictures.root / pictures.files[0]
    if change == "pixels":
        random_picture(50, 50, seed=99).save(first)
    elif change == "name":
        first.rename(pictures.root / "new.png")
        pictures = Pictures(pictures.root, ("new.png", *pictures.files[1:]), 16)
    elif change == "side":
        pictures = Pictures(pictures.root, pictures.files, 8)
    else:
        # Another picture of the same size, a moment later.
        state, content = first.stat(), (pictures.root / pictures.files[5]).read_bytes()
        first.write_bytes(content)
        os.utime(first, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert np.array_equal(np.asarray(decoded_rows(pictures, rows, cache)), pictures[rows])


def test_settled_examples_keep_their_labels_and_order(pictures, tmp_path):
    everything = Examples(pictures, np.arange(12))
    chosen = np.array([8, 1, 4])
    source = decode_files(Source(everything.subset(chosen), everything, 12), tmp_path / "cache")
    assert source.train.labels.tolist() == [8, 1, 4]
    assert np.array_equal(np.asarray(source.train.images), pictures[chosen])
    assert np.array_equal(np.asarray(source.test.images), pictures[:])


def test_rows_of_an_array_are_copied_out_of_it(tmp_path):
    whole = np.arange(10 * 12, dtype=np.uint8).reshape(10, 2, 2, 3)
    everything = Examples(whole, np.arange(10))
    source = decode_files(Source(everything.subset(np.array([4, 2])), everything, 10), tmp_path / "cache")
    assert np.array_equal(source.train.images, whole[[4, 2]])
    assert source.test.images is whole
    assert not (tmp_path / "cache").exists()


def test_kept_pictures_have_the_fingerprint_of_their_pixels(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("fedact.data.kinds.BYTES_AT_ONCE", 2000)
    rows = decoded_rows(pictures, np.array([5, 3, 11, 0]), tmp_path / "cache")
    assert [len(block) for block in in_blocks(rows)] == [2, 2]
    assert fingerprint(rows) == fingerprint(pictures[np.array([5, 3, 11, 0])])


def cut_off(file: Path) -> None:
    random_picture(60, 60).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:900])


def torn(file: Path) -> None:
    random_picture(60, 60).save(file, "PNG")
    content = bytearray(file.read_bytes())
    content[300:400] = bytes(100)
    file.write_bytes(content)


def bomb(file: Path) -> None:
    Image.new("1", (14_000, 14_000)).save(file, "PNG")


def small_bomb(file: Path) -> None:
    """Where Pillow only warns."""
    Image.new("1", (10_000, 10_000)).save(file, "PNG")


BROKEN = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no picture"),
    "cut off": cut_off,
    "torn": torn,
    "bomb": bomb,
    "small bomb": small_bomb,
    "sixteen bits": lambda file: Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(file, "PNG"),
    "a program": lambda file: random_picture(9, 9).save(file, "EPS"),
    "folder": lambda file: file.mkdir(),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("write", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_picture_is_named_and_the_others_are_kept(pictures, tmp_path, seen, write):
    file = pictures.root / pictures.files[4]
    file.unlink()
    write(file)
    with pytest.raises(ConfigError) as caught:
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    assert str(caught.value).count(str(file)) == 1
    assert "\n" not in str(caught.value)
    assert "1 of 12" in str(caught.value)
    good = np.delete(np.arange(12), 4)
    seen.clear()
    assert np.array_equal(np.asarray(decoded_rows(pictures, good, tmp_path / "cache")), pictures[good])
    assert len(seen) == len(good), "only the comparison decoded"


def test_of_many_broken_pictures_the_first_are_named(pictures, tmp_path):
    for file in pictures.files:
        (pictures.root / file).write_text("no picture")
    with pytest.raises(ConfigError, match=r"12 of 12 .*00\.png.*01\.png.*02\.png.*\.\.\.$") as caught:
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    assert "03.png" not in str(caught.value)


def test_a_missing_picture_and_a_link_to_nothing_are_named(pictures, tmp_path):
    file = pictures.root / pictures.files[4]
    file.unlink()
    with pytest.raises(ConfigError, match=r"04\.png cannot be read"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    file.symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"04\.png cannot be read"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")


def test_a_pipe_is_named_and_not_waited_for(pictures, tmp_path):
    (pictures.root / "04.png").unlink()
    os.mkfifo(pictures.root / "04.png")
    with pytest.raises(ConfigError, match=r"04\.png cannot be read: it is no file"):
        decoded_rows(pictures, np.arange(5), tmp_path / "cache")


def test_links_to_pictures_are_pictures(pictures, tmp_path):
    (tmp_path / "links").mkdir()
    for file in pictures.files:
        (tmp_path / "links" / file).symlink_to(pictures.root / file)
    linked = Pictures(tmp_path / "links", pictures.files, 16)
    assert np.array_equal(np.asarray(decoded_rows(linked, np.arange(12), tmp_path / "cache")), pictures[:])


def test_pictures_that_find_no_room_are_refused_before_any_is_decoded(pictures, tmp_path, monkeypatch, seen):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"9,216 bytes, but .* has 1,000: lower --max-examples"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    assert seen == []


def test_a_disk_that_fills_up_leaves_no_half_picture(pictures, tmp_path, monkeypatch):
    real, written = os.pwrite, []

    def full(descriptor, content, position):
        if len(written) > 4:
            raise OSError(28, "No space left on device")
        written.append(real(descriptor, content[:100], position))
        return written[-1]

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    monkeypatch.undo()
    assert np.array_equal(np.asarray(decoded_rows(pictures, np.arange(12), tmp_path / "cache")), pictures[:])


def test_a_cache_that_cannot_be_written_is_refused(pictures, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="FEDACT_CACHE"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")


@pytest.mark.parametrize("harm", ["no pixels", "no checksums", "short pixels", "short checksums", "other pixels"])
def test_a_file_that_was_not_made_whole_is_made_anew(pictures, tmp_path, harm):
    decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*/pixels" if "pixels" in harm else "*/checksums")
    if harm.startswith("no"):
        file.unlink()
    elif harm.startswith("short"):
        os.truncate(file, 5)
    else:
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(content)
    assert np.array_equal(np.asarray(decoded_rows(pictures, np.arange(12), tmp_path / "cache")), pictures[:])


def test_it_is_said_how_many_are_decoded_and_how_far_it_is(pictures, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(decoded, "MANY", 12)
    monkeypatch.setattr(decoded, "AT_ONCE", 5)
    with caplog.at_level(logging.INFO, "fedact.data.decoded_cache"):
        decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    first, *others = caplog.messages
    assert "decoding 12 pictures at 16 px, once" in first
    assert others == ["decoded 5 of 12 pictures", "decoded 10 of 12 pictures", "decoded 12 of 12 pictures"]


def decode_in_another_process(pictures: Pictures, cache: Path, said: Path, stop: int = 99) -> BaseProcess:
    """Start to keep all pictures; the process kills itself after so many, or says what it read and how many it decoded."""
    process = get_context("fork").Process(target=_decode_all, args=(pictures, cache, said, stop))
    process.start()
    return process


def _decode_all(pictures: Pictures, cache: Path, said: Path, stop: int) -> None:
    real, calls = Pictures.decode, []

    def stopping(self, row: int) -> np.ndarray:
        calls.append(row)
        if len(calls) > stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, row)

    Pictures.decode, decoded.AT_ONCE = stopping, 2
    rows = decoded_rows(pictures, np.arange(len(pictures)), cache)
    said.write_text(f"{hashlib.sha256(np.asarray(rows).tobytes()).hexdigest()} {len(calls)}")


def test_a_killed_decoder_is_gone_on_with(pictures, tmp_path, seen):
    killed = decode_in_another_process(pictures, tmp_path / "cache", tmp_path / "said", stop=6)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    rows = decoded_rows(pictures, np.arange(12), tmp_path / "cache")
    again = len(seen)
    assert np.array_equal(np.asarray(rows), pictures[:])
    assert again == 6


def test_two_processes_at_once_decode_each_picture_once_and_read_the_same(pictures, tmp_path):
    files = [tmp_path / "first", tmp_path / "second"]
    for process in [decode_in_another_process(pictures, tmp_path / "cache", file) for file in files]:
        process.join()
    said = [file.read_text().split() for file in files]
    assert {digest for digest, _ in said} == {hashlib.sha256(pictures[:].tobytes()).hexdigest()}
    assert sum(int(count) for _, count in said) == 12


@given(st.lists(st.integers(0, 11), max_size=20), st.lists(st.integers(0, 5), max_size=6))
def test_examples_of_pictures_are_those_of_an_array(first, second):
    class Drawn(Pictures):
        def decode(self, row):
            return np.full((2, 2, 3), row, np.uint8)

    drawn = Examples(Drawn(Path(), tuple(map(str, range(12))), 2), np.arange(12))
    plain = Examples(np.arange(12, dtype=np.uint8).repeat(12).reshape(12, 2, 2, 3), np.arange(12))
    rows = np.array(first, int)
    again = np.array([position for position in second if position < len(rows)], int)
    for got, wanted in (
        (drawn.take(rows), plain.take(rows)),
        (drawn.subset(rows).subset(again), plain.take(rows).take(again)),
    ):
        assert np.array_equal(np.asarray(got.images[np.arange(len(got))]), wanted.images)
        assert np.array_equal(got.labels, wanted.labels)
    assert isinstance(drawn.subset(rows).images, Rows | Drawn)
