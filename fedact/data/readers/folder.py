"""Any folder of pictures: train/<class>/ and val/<class>/ or test/<class>/ in --data-dir, or the classes alone."""

from pathlib import Path

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.examples import Request, Source
from fedact.data.partition import stratified
from fedact.data.readers.class_folders import class_names, read_classes, read_train_and_test

TEST_SHARE = 0.25


def load(request: Request) -> Source:
    """Return the pictures by class; without folders for testing a quarter is for that, stratified.

    Raises ConfigError for missing or empty folders, and for classes that are not the same in both. With val and test, val is
    what is tested on.
    """
    held_out = held_out_folder(request.path)
    _check_no_scenes(request.path / "train" if held_out else request.path)
    if held_out:
        train, test, names = read_train_and_test(request.path / "train", request.path / held_out, request.side)
        return Source(train, test, len(names), tuple(names))
    names = class_names(request.path)
    everything = read_classes(request.path, names, request.side)
    tested = stratified(everything.labels, round(TEST_SHARE * len(everything)), request.generator)
    trained = np.setdiff1d(np.arange(len(everything)), tested)
    return Source(everything.subset(trained), everything.subset(tested), len(names), tuple(names))


def held_out_folder(root: Path) -> str | None:
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
