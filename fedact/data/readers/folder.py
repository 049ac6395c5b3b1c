"""Any folder of pictures: train/<class>/ and val/<class>/ or test/<class>/ in --data-dir, or the classes alone."""

from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.partition import stratified
from fedact.data.readers.class_folders import both, class_names, labelled

TEST_SHARE = 0.25


def load(request: Request) -> Source:
    """Return the pictures by class; without folders for testing a quarter is for that, stratified.

    Raises ConfigError for missing or empty folders, and for classes that are not the same in both. With val and test, val is
    what is tested on.
    """
    held_out = tested_on(request.path)
    if held_out is None:
        return _quartered(request)
    _check_no_scenes(request.path / "train")
    train, test, names = both(request.path / "train", request.path / held_out, request.side)
    return Source(train, test, len(names), tuple(names))


def tested_on(root: Path) -> str | None:
    """Return which folder beside train is tested on, None where there are neither; raises ConfigError for one alone."""
    parts = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if not parts:
        return None
    if parts[0] != "train" or len(parts) == 1:
        lacks = "neither val nor test" if parts[0] == "train" else "no train"
        raise ConfigError(f"--data-dir {root} has a folder {parts[0]}, but {lacks}")
    return parts[1]


def _check_no_scenes(folder: Path) -> None:
    """Raise ConfigError where pictures and their masks would be the two classes."""
    if class_names(folder) == ["images", "masks"]:
        raise ConfigError(f"{folder} holds images and masks, which --task segmentation learns from, and no folder a class")


def _quartered(request: Request) -> Source:
    _check_no_scenes(request.path)
    names = class_names(request.path)
    everything = labelled(request.path, names, request.side)
    test = stratified(everything.labels, round(TEST_SHARE * len(everything)), request.generator)
    train = np.setdiff1d(np.arange(len(everything)), test)
    return Source(everything.only(train), everything.only(test), len(names), tuple(names))
