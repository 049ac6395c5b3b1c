"""Scenes and their masks: each data set is read as it lies on disk, and a pixel keeps its class wherever it goes."""

import os
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets
from torchvision.models.segmentation import FCN_ResNet50_Weights

from fedact.config.errors import ConfigError
from fedact.data import SEGMENTATION_DATASETS, VOID, Examples, Loader, Preprocessing, Request, Source, decode_files
from fedact.data.masks import Masks, Survey, class_table, count_classes, identity_classes, most_frequent_class, read_ids
from fedact.data.pictures import Scenes, fitted_size, frame_of
from fedact.data.scenes import ranges
from tests.support import scene_sets
from tests.support.scene_sets import (
    COLOURS,
    halves,
    paint,
    write_cityscapes,
    write_folder,
    write_mask,
    write_scenes,
    write_voc,
)

PLAIN = class_table(identity_classes(254, VOID))


def read(name: str, path: Path, seed: int = 0, side: int = 30, **settings) -> Source:
    request = Request(path, None, None, np.random.default_rng(seed), side, **settings)
    return decode_files(SEGMENTATION_DATASETS[name](request), request.cache)


def masks(examples: Examples) -> np.ndarray:
    return np.asarray(examples.masks)


def images(examples: Examples) -> np.ndarray:
    return np.asarray(examples.images)


def stacked(scenes: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack([ids for _, ids in sorted(scenes.items())])


def assert_painted_like_masks(examples: Examples, within: int = 0) -> None:
    """A pixel that counts has the colour of its class."""
    counts = masks(examples) != VOID
    difference = images(examples).astype(int)[counts] - COLOURS[masks(examples)[counts]]
    assert np.abs(difference).max() <= within


@pytest.mark.parametrize("test", ["val", "test"])
def test_a_folder_gives_back_its_pictures_and_masks_in_the_order_of_their_names(tmp_path, test):
    source = read("folder", write_folder(tmp_path, test))
    assert np.array_equal(masks(source.train), stacked(scene_sets.TRAINED))
    assert np.array_equal(masks(source.test), stacked(scene_sets.TESTED))
    assert np.array_equal(images(source.train), COLOURS[masks(source.train)])
    assert (source.classes, source.names) == (3, ())
    assert (images(source.train).dtype, masks(source.train).dtype, source.train.labels.dtype) == (
        np.uint8,
        np.uint8,
        np.int64,
    )


def test_labels_are_the_dominant_classes_of_masks_void_left_aside(tmp_path):
    source = read("folder", write_folder(tmp_path))
    assert source.train.labels.tolist() == [0, 1, 2, 1]
    assert source.test.labels.tolist() == [2, 0]


def test_labels_may_be_the_sources_of_pictures_numbered_over_both_parts(tmp_path):
    source = read("folder", write_folder(tmp_path), partition_by="source")
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert source.test.labels.tolist() == [1, 2]
    assert source.classes == 3


def test_a_pictures_source_is_its_folder_or_what_stands_before_an_underscore(tmp_path):
    names = {"alone": 2, "seq_1": 3, "seq_2": 3, "town/seq_3": 4, "x/y/town_4": 5, "town_5": 4}
    write_scenes(tmp_path / "train", {name: halves(0, 1) for name in names})
    write_scenes(tmp_path / "val", {"before_1": halves(0, 1)})
    source = read("folder", tmp_path, partition_by="source")
    # "", before, seq, town, x/y: as sorted
    assert source.train.labels.tolist() == [names[name] - 2 + (names[name] > 2) for name in sorted(names)]
    assert source.test.labels.tolist() == [1]


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 9, VOID]), min_size=1, max_size=9), min_size=1, max_size=4))
def test_the_dominant_class_is_the_most_frequent_first_one(pixels):
    counts = np.stack([np.bincount(each, minlength=256) for each in pixels])
    expected = [max(range(10), key=lambda label: (each.count(label), -label)) for each in pixels]
    assert most_frequent_class(counts).tolist() == expected


def test_ids_of_one_class_are_counted_together():
    counts = np.zeros((1, 256), np.uint32)
    counts[0, [3, 4, 5]] = 4, 3, 2
    summed = count_classes(counts, class_table({3: 0, 4: 1, 5: 1}))
    assert summed[0, [0, 1, VOID]].tolist() == [4, 5, 0]
    assert most_frequent_class(summed).tolist() == [1]


def test_the_dominant_class_is_the_same_at_every_size(tmp_path):
    random = np.random.default_rng(0)
    scenes = {f"{number}": random.integers(0, 6, (64, 64), dtype=np.uint8) for number in range(20)}
    write_scenes(tmp_path / "train", scenes)
    write_scenes(tmp_path / "val", {"0": halves(0, 5)})
    labels = [np.bincount(ids.ravel()).argmax() for ids in (scenes[name] for name in sorted(scenes))]
    assert (
        read("folder", tmp_path, side=64).train.labels.tolist()
        == labels
        == read("folder", tmp_path, side=8).train.labels.tolist()
    )


def test_of_images_and_masks_alone_a_stratified_quarter_is_for_testing_and_follows_the_seed(tmp_path):
    scenes = {f"{label}{place}": halves(label, 3 - label) for label in range(3) for place in range(8)}
    write_scenes(tmp_path, scenes)
    source, same, other = (read("folder", tmp_path, seed) for seed in (0, 0, 1))
    assert np.bincount(source.test.labels).tolist() == [2, 2, 2]
    assert np.bincount(source.train.labels).tolist() == [6, 6, 6]
    assert_painted_like_masks(source.train)
    assert np.array_equal(masks(source.test)[:, 0, 0], source.test.labels)
    assert np.array_equal(source.test.images.rows, same.test.images.rows)
    assert not np.array_equal(source.test.images.rows, other.test.images.rows)


def test_the_lines_of_classes_txt_are_the_classes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_text("road\ntraffic light\nsky\nnever seen\n")
    source = read("folder", tmp_path)
    assert (source.classes, source.names) == (4, ("road", "traffic light", "sky", "never seen"))


def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_a_name(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfroad\r\ncar\r\nsky\r\n")
    assert read("folder", tmp_path).names == ("road", "car", "sky")


def test_a_folder_may_be_linked_to_more_than_once(tmp_path):
    for kind in ("images", "masks"):
        write_scenes(tmp_path / "elsewhere", {name: halves(0, 1) for name in ("a", "b")})
        (tmp_path / kind).mkdir()
        for name in ("one", "other"):
            (tmp_path / kind / name).symlink_to(tmp_path / "elsewhere" / kind)
    source = read("folder", tmp_path)
    assert len(source.train) + len(source.test) == 4


def test_void_may_be_any_id(tmp_path):
    source = read("folder", write_scenes(tmp_path, {f"{number}": halves(2, number % 2) for number in range(8)}), void=2)
    assert source.classes == 2
    assert sorted(np.unique(masks(source.train))) == [0, 1, VOID]
    assert set(source.train.labels) <= {0, 1}


def test_a_rare_id_counts_though_no_pixel_of_it_is_left_in_the_frame(tmp_path):
    ids = halves(0, 1, 64, 64)
    ids[0, 0] = 4
    write_scenes(tmp_path, {f"{number}": ids for number in range(4)})
    source = read("folder", tmp_path, side=8)
    assert (source.classes, source.names) == (3, ("0", "1", "4"))
    assert masks(source.train).max() == 1


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("paths", [False, True])
def test_voc_is_read_as_torchvision_reads_it_and_with_the_augmented_set(tmp_path, augmented, paths):
    folder = write_voc(tmp_path, augmented, paths)
    if augmented:
        # Only here is anything to be learned of the sixth class.
        expected = stacked({**scene_sets.VOC_TRAIN, **scene_sets.VOC_MORE})
    else:
        theirs = datasets.VOCSegmentation(tmp_path, image_set="train")
        expected = np.stack([np.asarray(theirs[row][1]) for row in range(len(theirs))])
    source = read("voc2012", tmp_path, side=40)
    assert masks(source.train).shape == (len(expected), 40, 40)
    assert np.array_equal(masks(source.train)[:, 5:35], expected)
    assert (masks(source.train)[:, :5] == VOID).all()
    assert (images(source.train)[:, 35:] == 127).all()
    assert np.array_equal(masks(source.test)[0][:, 5:35], scene_sets.VOC_VAL["2007_000033"]), "a picture that stands upright"
    assert (images(source.test)[0][:, :5] == 127).all()
    with Image.open(folder / "JPEGImages" / "2007_000032.jpg") as opened:
        assert np.array_equal(images(source.train)[0, 5:35], np.asarray(opened))


def test_voc_has_the_published_classes_and_its_years_as_sources(tmp_path):
    write_voc(tmp_path, augmented=True)
    source = read("voc2012", tmp_path, partition_by="source")
    theirs = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    plain = [name.replace(" ", "").replace("/", "") for name in source.names]
    assert plain == [name.strip("_") for name in theirs]
    # 2007, 2008, 2008, 2009, 2010 to train on; 2007 and 2011 to test.
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1, 1, 2, 3], [0, 4])
    assert read("voc2012", tmp_path).train.labels.tolist() == [1, 0, 13, 5, 0]


@pytest.mark.parametrize("prepared", [False, True])
def test_cityscapes_is_read_in_the_classes_that_are_scored(tmp_path, prepared):
    source = read("cityscapes", write_cityscapes(tmp_path, prepared), side=20)
    expected = np.stack([scene_sets.as_train_ids(ids) for ids in scene_sets.CITYSCAPES_TRAIN.values()])
    assert np.array_equal(masks(source.train), expected)
    assert np.array_equal(images(source.train), COLOURS[expected])
    assert source.train.labels.tolist() == [0, 18, 11]
    assert source.test.labels.tolist() == [10]
    assert (source.classes, source.names[0], source.names[11], source.names[18]) == (19, "road", "person", "bicycle")


def test_cityscapes_frame_is_twice_as_wide_as_high_and_its_sources_are_cities(tmp_path):
    source = read("cityscapes", write_cityscapes(tmp_path), side=10, partition_by="source")
    assert masks(source.train).shape == (3, 10, 20)
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1, 1], [2])


def test_every_official_id_of_cityscapes_is_read_as_published(tmp_path):
    write_cityscapes(tmp_path)
    ids = np.arange(40, dtype=np.uint8).repeat(20).reshape(40, 20).T.copy()
    ids[ids > 33] = 255
    write_mask(next((tmp_path / "gtFine" / "train" / "aachen").glob("*labelIds.png")), ids)
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
    train_ids |= {28: 15, 31: 16, 32: 17, 33: 18}
    assert masks(read("cityscapes", tmp_path, side=20).train)[0, 0].tolist() == [train_ids.get(id, 255) for id in range(40)]


def test_camvid_loads(development_data):
    source = read("folder", development_data / "camvid", side=240, void=11)
    assert (len(source.train), len(source.test), source.classes) == (160, 60, 11)
    assert masks(source.train).shape == (160, 240, 320)
    assert images(source.test).shape == (60, 240, 320, 3)
    file = development_data / "camvid/train/masks/0001TP_006690.png"
    raw = np.asarray(Image.open(file))
    assert np.array_equal(masks(source.train)[0], np.where(raw == 11, VOID, raw))
    by_source = read("folder", development_data / "camvid", side=240, void=11, partition_by="source")
    # 0001TP, 0006R0, 0016E5, Seq05VD
    assert np.bincount(by_source.train.labels).tolist() == [28, 44, 88]
    assert np.bincount(by_source.test.labels).tolist() == [16, 0, 0, 44]


@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 40), st.integers(4, 40), st.booleans())
def test_a_picture_painted_like_its_mask_stays_so_in_any_frame(tmp_path_factory, height, width, down, across, upright):
    root = tmp_path_factory.getbasetemp() / "painted"
    ids = halves(1, 2, height, width) if upright else halves(1, 2, width, height).T.copy()
    paint(root / "picture.png", ids)
    write_mask(root / "mask.png", ids)
    picture = Scenes(root, ("picture.png",), (down, across)).decode(0)
    mask = Masks(root, ("mask.png",), (down, across), PLAIN).decode(0)
    assert ((picture == 127).all(axis=2) == (mask == VOID)).all()
    # Between the two halves the picture is smoothed, but each pixel is nearer to its own colour, but for rounding.
    own, other = (np.abs(picture.astype(int) - COLOURS[ids]).sum(axis=2) for ids in (mask, np.where(mask == 1, 2, 1)))
    assert (own <= other + 3)[mask != VOID].all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.integers(1, 600))
def test_what_is_fitted_touches_the_frame_and_keeps_its_proportions(width, height, down, across):
    fitted = fitted_size((width, height), (down, across))
    assert fitted[0] == across or fitted[1] == down
    assert 1 <= fitted[0] <= across
    assert 1 <= fitted[1] <= down
    scale = min(across / width, down / height)
    assert abs(fitted[0] - width * scale) <= 1
    assert abs(fitted[1] - height * scale) <= 1


def test_a_mask_is_scaled_to_its_nearest_ids_and_no_others(tmp_path):
    ids = np.kron(np.array([[0, 200], [7, 3]], np.uint8), np.ones((20, 20), np.uint8))
    write_mask(tmp_path / "mask.png", ids)
    scaled = Masks(tmp_path, ("mask.png",), (10, 10), PLAIN).decode(0)
    assert np.array_equal(scaled, np.kron(np.array([[0, 200], [7, 3]]), np.ones((5, 5))))


def test_the_palette_of_a_mask_says_nothing_of_its_ids(tmp_path):
    write_mask(tmp_path / "gray.png", halves(3, 255), "L")
    write_mask(tmp_path / "colours.png", halves(3, 255), "P")
    assert np.array_equal(read_ids(tmp_path / "gray.png"), halves(3, 255))
    assert np.array_equal(read_ids(tmp_path / "colours.png"), halves(3, 255))


def test_the_frame_has_the_first_pictures_proportions_and_others_are_fitted_into_it(tmp_path):
    write_scenes(tmp_path / "train", {"a": halves(0, 1, 30, 50), "b": halves(0, 1, 50, 30), "c": halves(0, 1, 60, 100)})
    write_scenes(tmp_path / "val", {"a": halves(0, 1, 10, 10)})
    source = read("folder", tmp_path, side=30)
    assert images(source.train).shape == (3, 30, 50, 3)
    assert [(mask != VOID).sum(axis=1).max() for mask in masks(source.train)] == [50, 18, 50]
    assert (masks(source.test)[0] != VOID).sum() == 30 * 30


def test_a_picture_that_its_camera_turned_stands_upright_on_its_mask(tmp_path):
    ids = halves(0, 1)
    for name in ("a", "b"):
        write_scenes(tmp_path, {name: ids}, ".jpg")
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(tmp_path / "images" / f"{name}.jpg") as opened:
            turned = opened.rotate(90, expand=True)
        turned.save(tmp_path / "images" / f"{name}.jpg", exif=exif, quality=100, subsampling=0)
    assert frame_of(tmp_path / "images" / "a.jpg", 30) == (30, 40)
    source = read("folder", tmp_path)
    assert np.array_equal(masks(source.train)[0], ids)
    assert_painted_like_masks(source.train, within=6)


def test_taken_and_chosen_examples_carry_their_masks():
    numbers = np.arange(6, dtype=np.uint8)
    examples = Examples(numbers.repeat(12).reshape(6, 2, 2, 3), np.arange(6), numbers.repeat(4).reshape(6, 2, 2))
    chosen = np.array([4, 1, 3])
    for some in (examples.take(chosen), examples.subset(chosen), examples.subset(chosen).subset(np.arange(3))):
        assert masks(some)[:, 0, 0].tolist() == [4, 1, 3]
    assert masks(examples.subset(chosen).take(np.array([2, 0])))[:, 1, 1].tolist() == [3, 4]
    assert Examples(examples.images, examples.labels).subset(chosen).masks is None


def test_a_loader_gives_whole_frames_and_their_masks(tmp_path):
    source = read("folder", write_folder(tmp_path))
    loader = Loader(source.train, Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3, whole=True))
    x, y = loader(np.array([3, 0]))
    assert (x.shape, y.shape, y.dtype) == ((2, 3, 30, 40), (2, 30, 40), torch.int64)
    assert np.array_equal(y.numpy(), masks(source.train)[[3, 0]])
    assert np.array_equal((x * 255).round().permute(0, 2, 3, 1).numpy(), images(source.train)[[3, 0]])
    assert torch.equal(loader.targets(np.array([3, 0])), y)


def test_without_masks_the_targets_are_labels():
    loader = Loader(
        Examples(np.zeros((3, 4, 4, 3), np.uint8), np.array([5, 6, 7])), Preprocessing(4, 4, (0.5,) * 3, (0.5,) * 3)
    )
    assert loader.targets(np.array([2, 0])).tolist() == [7, 5]


def counting_decoders(monkeypatch) -> list[str]:
    """Return the list of what is decoded from now on."""
    seen: list[str] = []
    for kind in (Scenes, Masks, Survey):
        real = kind.decode

        def decode(self, row, real=real, kind=kind):
            seen.append(f"{kind.__name__} {self.files[row]}")
            return real(self, row)

        monkeypatch.setattr(kind, "decode", decode)
    return seen


def test_pictures_and_masks_are_decoded_once_and_lie_on_disk(tmp_path, monkeypatch):
    seen = counting_decoders(monkeypatch)
    first = read("folder", write_folder(tmp_path / "data"), cache=tmp_path / "cache")
    assert sorted(seen) == sorted(
        f"{kind} {folder}/{name}.png"
        for kind, folder in (("Scenes", "images"), ("Masks", "masks"), ("Survey", "masks"))
        for name in (*scene_sets.TRAINED, *scene_sets.TESTED)
    )
    assert isinstance(first.train.masks.array, np.memmap)
    seen.clear()
    again = read("folder", tmp_path / "data", seed=1, cache=tmp_path / "cache", partition_by="source")
    assert seen == []
    assert np.array_equal(masks(again.train), masks(first.train))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ("side", {"Scenes", "Masks"}),
        ("classes", {"Masks"}),
        ("masks", {"Masks", "Survey"}),
        ("images", {"Scenes", "Survey"}),
    ],
)
def test_only_what_changed_is_decoded_anew(tmp_path, monkeypatch, change, kinds):
    read("folder", write_folder(tmp_path / "data"), cache=tmp_path / "cache")
    seen = counting_decoders(monkeypatch)
    if change == "classes":
        (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\nd\n")
    elif change != "side":
        file = tmp_path / "data" / "train" / change / "a_1.png"
        state = file.stat()
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    read("folder", tmp_path / "data", side=15 if change == "side" else 30, cache=tmp_path / "cache")
    assert {name.split()[0] for name in seen} == kinds


def test_only_the_scenes_of_a_run_are_decoded(tmp_path, monkeypatch):
    seen = counting_decoders(monkeypatch)
    request = Request(write_folder(tmp_path), None, None, np.random.default_rng(0), 30)
    source = SEGMENTATION_DATASETS["folder"](request)
    few = decode_files(Source(source.train.subset(np.array([2])), source.test.subset(np.array([1])), 3), request.cache)
    assert {name for name in seen if not name.startswith("Survey")} == {
        "Scenes images/b_1.png", "Masks masks/b_1.png", "Scenes images/c_1.png", "Masks masks/c_1.png",
    }  # fmt: skip
    assert np.array_equal(masks(few.train)[0], scene_sets.TRAINED["b_1"])


def narrow_gray(file: Path) -> None:
    """Write a PNG of two bits a pixel, whose ids Pillow would spread: 0 to 3 become 0 to 255."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header, pixels = struct.pack(">IIBBBBB", 40, 30, 2, 0, 0, 0, 0), zlib.compress((b"\0" + bytes([0b00011011] * 10)) * 30)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def image_of(mode: str, size=(40, 30)):
    return lambda root: Image.new(mode, size).save(root / "train/masks/a_2.png")


WRONG_FOLDERS = {
    "another size": (image_of("L", (40, 31)), r"1 of 4 masks .*masks/a_2\.png: it is 40 x 31 .*images/a_2\.png 40 x 30"),
    "turned": (image_of("L", (30, 40)), r"masks/a_2\.png: it is 30 x 40 pixels, but its picture .* 40 x 30"),
    "in colour": (image_of("RGB"), r"masks/a_2\.png: its mode is RGB"),
    "with alpha": (image_of("LA"), r"masks/a_2\.png: its mode is LA"),
    "sixteen bits": (image_of("I;16"), r"masks/a_2\.png: its mode is I;16"),
    "black and white": (image_of("1"), r"masks/a_2\.png: its mode is 1"),
    "two bits": (lambda root: narrow_gray(root / "train/masks/a_2.png"), r"masks/a_2\.png: .* eight bits"),
    "text": (lambda root: (root / "train/masks/a_2.png").write_text("no mask"), r"masks/a_2\.png: it is no PNG"),
    "empty file": (lambda root: (root / "train/masks/a_2.png").write_bytes(b""), r"masks/a_2\.png: it is no PNG"),
    "JPEG": (
        lambda root: Image.new("L", (40, 30)).save(root / "train/masks/a_2.png", "JPEG"),
        r"masks/a_2\.png: it is no PNG, as a mask must be",
    ),
    "a mask cut off": (
        lambda root: (root / "train/masks/a_2.png").write_bytes((root / "train/masks/a_2.png").read_bytes()[:60]),
        r"masks/a_2\.png",
    ),
    "a broken picture": (
        lambda root: (root / "train/images/a_2.png").write_text("x"),
        r"its picture .*images/a_2\.png cannot",
    ),
    "the first picture broken": (
        lambda root: (root / "train/images/a_1.png").write_text("x"),
        r"images/a_1\.png cannot be read",
    ),
    "no mask": (lambda root: (root / "train/masks/a_2.png").unlink(), r"images/a_2\.png has no mask$"),
    "no picture": (lambda root: (root / "val/images/c_1.png").unlink(), r"masks/c_1\.png has no picture$"),
    "an id too large": (
        lambda root: write_mask(root / "val/masks/c_1.png", halves(0, 3)),
        r"where 0 to 2, 255 are allowed \(--void .*val/masks/c_1\.png holds 3$",
    ),
    "an id that no line names": (
        lambda root: (root / "classes.txt").write_text("a\nb\n"),
        r"0 to 1, 255 are allowed.*train/masks/a_2\.png holds 2; .*train/masks/b_1\.png holds 2$",
    ),
    "doubles": (
        lambda root: (root / "classes.txt").write_text("a\nb\na\n"),
        r"classes\.txt names a class more than once: a$",
    ),
    "empty classes": (lambda root: (root / "classes.txt").write_text("\n"), r"classes\.txt is empty"),
    "one class": (
        lambda root: (root / "classes.txt").write_text("a\n"),
        "fewer than two classes: its masks hold 0 to 2, 255",
    ),
    "too many classes": (
        lambda root: (root / "classes.txt").write_text("".join(f"{number}\n" for number in range(256))),
        r"classes\.txt names 256 classes",
    ),
    "no images": (lambda root: (root / "train/images").rename(root / "x"), r"train/images cannot be read as a folder"),
    "no masks": (lambda root: (root / "val/masks").rename(root / "x"), r"val/masks cannot be read as a folder"),
    "empty": (lambda root: [file.unlink() for file in (root / "val/images").iterdir()], r"val/images holds no picture"),
    "no val": (lambda root: (root / "val").rename(root / "x"), "has a folder train, but neither val nor test"),
    "nothing": (lambda root: root.rename(root.with_name("x")), "neither train and val or test, nor images and masks"),
    "a link to the folder it lies in": (
        lambda root: (root / "train/images/again").symlink_to(root / "train/images"),
        r"train/images/again leads back to .*train/images, in which it lies$",
    ),
    "a link to itself": (
        lambda root: (root / "train/masks/itself").symlink_to("itself"),
        r"train/masks/itself cannot be looked at: Too many levels of symbolic links$",
    ),
    "classes that a link does not lead to": (
        lambda root: (root / "classes.txt").symlink_to("nowhere"),
        r"classes\.txt cannot be read: No such file",
    ),
    "two of one name": (lambda root: paint(root / "train/images/a_2.jpg", halves(0, 1)), r"one name.*images/a_2\.jpg"),
}


@pytest.mark.parametrize("partition_by", ["class", "source"])
@pytest.mark.parametrize(("harm", "said"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_folders_that_are_no_data_set_are_refused_in_one_line(tmp_path, harm, said, partition_by):
    root = write_folder(tmp_path / "data")
    harm(root)
    with pytest.raises(ConfigError, match=said) as caught:
        read("folder", root, partition_by=partition_by)
    assert "\n" not in str(caught.value)


def test_a_strip_is_no_frame(tmp_path):
    write_scenes(tmp_path, {name: halves(0, 1, 2, 200) for name in ("a", "b")})
    with pytest.raises(ConfigError, match=r"images/a\.png is 200 x 2 pixels"):
        read("folder", tmp_path)


def test_one_scene_cannot_be_both_trained_and_tested_on(tmp_path):
    with pytest.raises(ConfigError, match="holds one picture"):
        read("folder", write_scenes(tmp_path, {"a": halves(0, 1)}))
    source = read("folder", write_scenes(tmp_path, {"b": halves(0, 1)}))
    assert (len(source.train), len(source.test)) == (1, 1)


def test_masks_without_a_second_class_are_refused(tmp_path):
    write_scenes(tmp_path, {"a": halves(0, 255), "b": halves(255, 0)})
    with pytest.raises(ConfigError, match=r"its masks hold 0, 255, and .* if 255 is one, .* no mask holds: --void 1$"):
        read("folder", tmp_path)
    source = read("folder", tmp_path, void=1)
    assert (source.classes, source.names) == (2, ("0", "255"))
    assert {*np.unique(masks(source.train)), *np.unique(masks(source.test))} == {0, 1}
    with pytest.raises(ConfigError, match=r"its masks hold 0, 255, and --void 0 is no class; if 0 is one, .*: --void 1$"):
        read("folder", tmp_path, void=0)
    (tmp_path / "classes.txt").write_text("ground\nroad\n")
    with pytest.raises(ConfigError, match=r"--void 1 and no classes\.txt$"):
        read("folder", tmp_path)


def test_ids_with_gaps_are_classes_without_and_their_names_in_both_parts(tmp_path, caplog):
    write_scenes(tmp_path / "train", {"a": halves(30, 10), "b": halves(20, 255), "c": halves(30, 10)})
    write_scenes(tmp_path / "val", {"d": halves(15, 30)})
    with caplog.at_level("INFO", "fedact"):
        source = read("folder", tmp_path)
    assert (source.classes, source.names) == (4, ("10", "15", "20", "30"))
    assert [np.unique(mask).tolist() for mask in masks(source.train)] == [[0, 3], [2, VOID], [0, 3]]
    assert [np.unique(mask).tolist() for mask in masks(source.test)] == [[1, 3]]
    assert source.train.labels.tolist() == [3, 2, 3]
    assert "the ids 10, 15, 20, 30: they are classes 0 to 3" in caplog.text
    write_scenes(tmp_path / "val", {"e": halves(30, 31)})
    with pytest.raises(ConfigError, match=r"10, 15, 20, 30, 255 are allowed.*holds 31"):
        read("folder", tmp_path)


def test_id_255_is_a_class_where_another_is_void(tmp_path):
    write_scenes(tmp_path, {"a": halves(0, 255), "b": halves(1, 0)})
    source = read("folder", tmp_path, void=11)
    assert (source.classes, source.names) == (3, ("0", "1", "255"))


@pytest.mark.parametrize("kind", ["masks", "sizes", "ids"])
def test_of_many_faults_the_first_three_are_named(tmp_path, kind):
    root = write_scenes(tmp_path, {f"{number}": halves(0, 1) for number in range(6)})
    (root / "classes.txt").write_text("a\nb\n")
    for number in range(1, 6):
        file = root / "masks" / f"{number}.png"
        if kind == "masks":
            file.unlink()
        else:
            write_mask(file, halves(0, 1, 30, 30) if kind == "sizes" else halves(0, 2))
    with pytest.raises(ConfigError, match=r"1\.png.*2\.png.*3\.png.*; \.\.\.$") as caught:
        read("folder", root)
    assert "4.png" not in str(caught.value)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


LISTS = "ImageSets/Segmentation"
WRONG_VOC = {
    "a missing picture": (lambda f: (f / "JPEGImages/2008_000002.jpg").unlink(), r"trainaug\.txt names .*2008_000002\.jpg$"),
    "a missing mask": (lambda f: (f / "SegmentationClass/2011_003271.png").unlink(), r"val\.txt names .*2011_003271\.png$"),
    "a name that is no picture": (
        lambda f: edit(f / LISTS / "val.txt", "2011_003271", "nothing"),
        r"val\.txt .*nothing\.jpg",
    ),
    "an empty list": (lambda f: (f / LISTS / "trainaug.txt").write_text(""), r"trainaug\.txt is empty"),
    "a picture in both": (
        lambda f: (f / LISTS / "trainaug.txt").write_text("2011_003271\n2008_000002\n"),
        r"both to train and to test on: JPEGImages/2011_003271\.jpg",
    ),
    "half of the augmented set": (lambda f: (f / LISTS / "trainaug.txt").unlink(), r"trainaug\.txt is not: .* needs both"),
    "the other half": (
        lambda f: (f / "SegmentationClassAug").rename(f / "x"),
        r"trainaug\.txt is there, but .*ClassAug is not",
    ),
    "an unknown class": (
        lambda f: write_mask(f / "SegmentationClassAug/2009_000001.png", halves(0, 21)),
        r"0 to 20, 255 are allowed: .*2009_000001\.png holds 21",
    ),
    "a mask in colour": (
        lambda f: paint(f / "SegmentationClass/2011_003271.png", halves(0, 1)),
        r"2011_003271\.png: its mode is RGB",
    ),
}


@pytest.mark.parametrize(("harm", "said"), WRONG_VOC.values(), ids=WRONG_VOC.keys())
def test_a_voc_whose_lists_do_not_fit_is_refused(tmp_path, harm, said):
    harm(write_voc(tmp_path, augmented=True))
    with pytest.raises(ConfigError, match=said) as caught:
        read("voc2012", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_voc_is_left_to_torchvision_and_else_said_with_what_to_put_where(tmp_path, monkeypatch):
    def never(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", never)
    with pytest.raises(ConfigError, match=r"VOCtrainval_11-May-2012\.tar unpacked in .*nothing") as caught:
        read("voc2012", tmp_path / "nothing")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        "torchvision.datasets.voc.download_and_extract_archive", lambda url, root, **_: write_voc(Path(root))
    )
    assert len(read("voc2012", tmp_path).train) == 3


WRONG_CITYSCAPES = {
    "nothing": (
        lambda root: root.rename(root.with_name("x")),
        r"lacks .*leftImg8bit/train: put .*zip.*https://www\.cityscapes",
    ),
    "no masks": (lambda root: (root / "gtFine").rename(root / "x"), r"lacks .*gtFine/train: put .*gtFine_trainvaltest\.zip"),
    "an empty part": (
        lambda root: [file.unlink() for file in (root / "leftImg8bit/val").rglob("*.png")],
        r"leftImg8bit/val holds no picture",
    ),
    "a missing mask": (
        lambda root: next(root.rglob("aachen*_gtFine_labelIds.png")).unlink(),
        r"aachen_000000_000019_leftImg8bit\.png has no mask$",
    ),
    "a missing picture": (
        lambda root: next(root.rglob("bochum_000000_000600_leftImg8bit.png")).unlink(),
        r"bochum_000000_000600_gtFine_labelIds\.png has no picture$",
    ),
    "an id too large": (
        lambda root: write_mask(next(root.rglob("lindau*_labelIds.png")), halves(34, 7, 20, 40)),
        r"0 to 33, 255 are allowed: .*lindau.*_labelIds\.png holds 34$",
    ),
}


@pytest.mark.parametrize(("harm", "said"), WRONG_CITYSCAPES.values(), ids=WRONG_CITYSCAPES.keys())
def test_a_cityscapes_that_does_not_fit_is_refused(tmp_path, harm, said):
    harm(write_cityscapes(tmp_path / "data"))
    with pytest.raises(ConfigError, match=said) as caught:
        read("cityscapes", tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_train_ids_that_are_there_for_some_are_asked_for_all(tmp_path):
    write_cityscapes(tmp_path, prepared=True)
    next(tmp_path.rglob("aachen*_gtFine_labelTrainIds.png")).unlink()
    with pytest.raises(ConfigError, match=r"aachen.*has no mask$"):
        read("cityscapes", tmp_path)


@given(st.sets(st.integers(0, 255), min_size=1))
def test_ranges_say_exactly_the_numbers(numbers):
    runs = [run.split(" to ") for run in ranges(sorted(numbers)).split(", ")]
    said = [number for run in runs for number in range(int(run[0]), int(run[-1]) + 1)]
    assert said == sorted(numbers)
    assert all(int(before[-1]) + 1 < int(after[0]) for before, after in pairwise(runs))


def synthetic(train=None, test=None, seed=0, side=32, partition_by="class") -> Source:
    request = Request(Path(), train, test, np.random.default_rng(seed), side, partition_by=partition_by)
    return SEGMENTATION_DATASETS["synthetic"](request)


def test_synthetic_scenes_are_as_many_as_were_asked_for_and_follow_the_seed():
    source, same, other = (synthetic(33, 7, seed) for seed in (0, 0, 1))
    assert images(source.train).shape == (33, 32, 32, 3)
    assert masks(source.test).shape == (7, 32, 32)
    assert np.array_equal(source.train.images, same.train.images)
    assert np.array_equal(source.train.masks, same.train.masks)
    assert not np.array_equal(source.train.masks, other.train.masks)
    default = synthetic(side=16)
    assert (len(default.train), len(default.test), default.classes, len(default.names)) == (400, 100, 5, 5)


@pytest.mark.parametrize("by", ["class", "source"])
def test_examples_know_how_many_pixels_of_each_class_they_hold(tmp_path, by):
    folder = read("folder", write_folder(tmp_path), partition_by=by)
    for source in (synthetic(30, 5, partition_by=by), folder):
        for examples in (source.train, source.train.subset(np.array([3, 1, 2])), source.train.take(np.array([3, 0]))):
            pixels = np.bincount(masks(examples).ravel(), minlength=256)
            assert examples.class_sizes(source.classes).tolist() == pixels[: source.classes].tolist()


def test_synthetic_scenes_have_all_classes_void_and_sources():
    source, by_source = synthetic(200, 50), synthetic(200, 50, partition_by="source")
    assert np.unique(source.train.masks).tolist() == [0, 1, 2, 3, 4, VOID]
    assert (np.bincount(source.train.labels, minlength=5) >= 20).all()
    voids = (source.train.masks == VOID).mean(axis=(1, 2))
    assert 50 < np.count_nonzero(voids) < 150
    assert voids.max() < 0.5
    assert np.bincount(by_source.train.labels).tolist() == [50] * 4
    assert np.array_equal(by_source.train.images, source.train.images)
    lights = [by_source.train.images[by_source.train.labels == number].mean(axis=(0, 1, 2)) for number in range(4)]
    assert min(np.abs(one - other).max() for place, one in enumerate(lights) for other in lights[:place]) > 5


def test_synthetic_scenes_can_be_learned_from_colours_alone():
    """Whatever knows no more than each class's mean colour is right of most pixels, so that a network can be of more."""
    source = synthetic(100, 40)
    colours = np.stack([source.train.images[source.train.masks == label].mean(axis=0) for label in range(5)])
    distances = ((source.test.images[:, :, :, None].astype(float) - colours) ** 2).sum(axis=-1)
    counts = source.test.masks != VOID
    guessed, true = distances.argmin(axis=-1)[counts], source.test.masks[counts]
    ious = [
        ((guessed == label) & (true == label)).sum() / ((guessed == label) | (true == label)).sum() for label in range(5)
    ]
    assert min(ious) > 0.3
    assert np.mean(ious) > 0.5


def test_too_many_synthetic_scenes_are_refused():
    with pytest.raises(ConfigError, match=r"1,000,100 scenes of 2048 pixels a side would take .* at most 15,000,000,000"):
        synthetic(train=1_000_000, side=2048)
