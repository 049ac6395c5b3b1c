"""Tiny data sets of scenes, in the layouts that the real ones have on disk; each picture is painted like its mask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.random.default_rng(7).permuted(np.arange(256 * 3, dtype=np.int64).reshape(256, 3) * 89 % 251, axis=1)
"""A colour for each id."""


def halves(first: int, second: int, height: int = 30, width: int = 40, cut: float = 0.6) -> np.ndarray:
    """Return ids: the first in the upper part, which is the larger one, the second in the lower."""
    ids = np.full((height, width), second, np.uint8)
    ids[: round(cut * height)] = first
    return ids


def paint(picture: Path, ids: np.ndarray) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    settings = {"quality": 100, "subsampling": 0} if picture.suffix == ".jpg" else {}
    Image.fromarray(COLOURS[ids].astype(np.uint8)).save(picture, **settings)


def write_mask(mask: Path, ids: np.ndarray, mode: str = "L") -> None:
    mask.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(COLOURS.astype(np.uint8).tobytes())
    assert image.mode == mode
    image.save(mask)


def write_scenes(folder: Path, scenes: dict[str, np.ndarray], suffix: str = ".png") -> Path:
    """Write images/NAME and masks/NAME for each."""
    for name, ids in scenes.items():
        paint(folder / "images" / f"{name}{suffix}", ids)
        write_mask(folder / "masks" / f"{name}.png", ids)
    return folder


TRAINED = {"a_1": halves(0, 1), "a_2": halves(1, 2), "b_1": halves(2, 0), "b_2": halves(1, 255, cut=0.3)}
TESTED = {"b_3": halves(2, 1), "c_1": halves(0, 255)}


def write_folder(root: Path, test: str = "val") -> Path:
    """Four scenes to train on, two to test, three classes; mask b_2 is mostly void."""
    write_scenes(root / "train", TRAINED)
    write_scenes(root / test, TESTED)
    return root


VOC_TRAIN = {"2007_000032": halves(1, 15), "2008_000002": halves(0, 20), "2008_000008": halves(255, 13, cut=0.9)}
VOC_VAL = {"2007_000033": halves(0, 1, height=40, width=30), "2011_003271": halves(19, 0)}
VOC_MORE = {"2009_000001": halves(5, 0), "2010_000002": halves(0, 6)}


def write_voc(root: Path, augmented: bool = False, paths: bool = False) -> Path:
    """Three scenes to train on, two to test; the augmented set has two more. paths: it is a list of two paths a line."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name, ids in {**VOC_TRAIN, **VOC_VAL, **VOC_MORE}.items():
        paint(folder / "JPEGImages" / f"{name}.jpg", ids)
        if name not in VOC_MORE:
            write_mask(folder / "SegmentationClass" / f"{name}.png", ids, "P")
        if augmented:
            write_mask(folder / "SegmentationClassAug" / f"{name}.png", ids)
    lists = folder / "ImageSets" / "Segmentation"
    _write_lines(lists / "train.txt", sorted(VOC_TRAIN))
    _write_lines(lists / "val.txt", sorted(VOC_VAL))
    if augmented:
        names = sorted({**VOC_TRAIN, **VOC_MORE})
        both = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
        _write_lines(lists / "trainaug.txt", both if paths else names)
    return folder


CITYSCAPES_TRAIN = {
    "aachen/aachen_000000_000019": halves(7, 26, height=20, width=40),
    "bochum/bochum_000000_000313": halves(33, 3, height=20, width=40),
    "bochum/bochum_000000_000600": halves(0, 24, height=20, width=40),
}
CITYSCAPES_VAL = {"lindau/lindau_000000_000019": halves(23, 11, height=20, width=40)}
TRAIN_IDS = {7: 0, 26: 13, 33: 18, 3: 255, 0: 255, 24: 11, 23: 10, 11: 2}
"""As published, of the ids above."""


def write_cityscapes(root: Path, prepared: bool = False) -> Path:
    """Three scenes to train on, one to test; prepared: there are masks of train ids, too."""
    for part, scenes in (("train", CITYSCAPES_TRAIN), ("val", CITYSCAPES_VAL)):
        for name, ids in scenes.items():
            paint(root / "leftImg8bit" / part / f"{name}_leftImg8bit.png", as_train_ids(ids))
            write_mask(root / "gtFine" / part / f"{name}_gtFine_labelIds.png", ids)
            write_mask(root / "gtFine" / part / f"{name}_gtFine_instanceIds.png", ids)
            paint(root / "gtFine" / part / f"{name}_gtFine_color.png", ids)
            if prepared:
                write_mask(root / "gtFine" / part / f"{name}_gtFine_labelTrainIds.png", as_train_ids(ids))
    return root


def as_train_ids(ids: np.ndarray) -> np.ndarray:
    return np.vectorize(TRAIN_IDS.__getitem__)(ids).astype(np.uint8)


def _write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
