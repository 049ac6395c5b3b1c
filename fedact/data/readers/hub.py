"""Data sets of Hugging Face: by name (downloaded once), a folder that ``save_to_disk`` wrote, or parquet files."""

import glob
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedact.config.environment import LIBRARIES, set_defaults
from fedact.config.errors import ConfigError, check_extra, unknown
from fedact.config.hub import PARQUET, HubData, parse_hub
from fedact.config.paths import cache_folder
from fedact.data.examples import Images, Request, Source
from fedact.data.own import PARTS, Labelled, check_alike, numbered
from fedact.data.partition import stratified
from fedact.data.readers.hub_columns import Columns, class_names, find_columns, ids_of
from fedact.data.readers.hub_pictures import HubPictures, hub_pictures
from fedact.data.readers.hub_series import hub_inputs

TEST_SHARE = 0.25
"""As of a folder without pictures for testing."""
TESTS = ("test", "validation", "valid", "val", "dev")
"""What a split to test on is called: the first that is there."""
SAVED = ("dataset_dict.json", "state.json")
"""What save_to_disk leaves in a folder."""

LOGGERS = ("datasets", "huggingface_hub")

log = logging.getLogger(__name__)


def check_hub(text: str, task: str = "classification") -> None:
    """Raise ConfigError where a name's settings are unknown, its path leads nowhere, or the packages are not installed."""
    if task != "classification":
        raise ConfigError(f"--dataset {text} is for --task classification, not for --task {task}")
    check_extra("hub", f"--dataset {text}")
    _ = parse_hub(text).path


def load(text: str, request: Request) -> Source:
    """Return the data set that ``hf:PLACE:key=value,...`` names.

    Without a split to test on a quarter is for that, stratified. Pictures are decoded where they are asked for, and
    large arrays read there. Raises ConfigError for what cannot be loaded, and where columns or splits do not say what they
    are.
    """
    check_hub(text)
    data = parse_hub(text)
    splits = _opened(data, text)
    train, test = _chosen(data, splits, text)
    columns = find_columns(splits[train].features, data, text)
    names = class_names(splits[train].features, columns.label)
    named = zip([train, *([test] if test else [])], PARTS, strict=False)
    parts = [_part(splits[name], columns, name, text, request.side, part) for name, part in named]
    if test is not None:
        _check_columns(splits[train], splits[test], columns, text)
        parts = _of_one_kind(parts[0], parts[1], text)
    source = numbered(parts, text, names)
    if test is not None:
        return source
    tested = stratified(source.train.labels, round(TEST_SHARE * len(source.train)), request.generator)
    trained = np.setdiff1d(np.arange(len(source.train)), tested)
    return replace(source, train=source.train.subset(trained), test=source.train.subset(tested))


def _check_columns(train: Any, test: Any, columns: Columns, text: str) -> None:
    """Raise ConfigError where a column holds one thing in what is trained on and another in what is tested on."""
    for column in (columns.image, columns.label):
        one, other = train.features[column], test.features[column]
        if type(one) is not type(other) or getattr(one, "names", None) != getattr(other, "names", None):
            raise ConfigError(f"{text}: {column} is {one} in what is trained on, and {other} in what is tested on")


def _of_one_kind(train: Labelled, test: Labelled, text: str) -> list[Labelled]:
    """Return both parts with inputs of one kind: pictures in colour where some are; raises ConfigError for others."""
    parts = [train, test]
    pictures = [part.images for part in parts if isinstance(part.images, HubPictures)]
    if not pictures:
        check_alike(train.images, test.images, text)
    elif any(each.grey for each in pictures) and not all(each.grey for each in pictures):
        parts = [part._replace(images=replace(each, grey=False)) for part, each in zip(parts, pictures, strict=True)]
    return parts


def _chosen(data: HubData, splits: Mapping[str, Any], text: str) -> tuple[str, str | None]:
    """Return the split to train on and the one to test on, None where there is none."""
    for given in (data.split, data.test):
        if given is not None and given not in splits:
            raise unknown(f"split of {text}", given, splits)
    train = data.split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if train is None:
        raise ConfigError(f"{text} has the splits {', '.join(splits)}: name one, as in split={next(iter(splits))}")
    if data.test == train:
        raise ConfigError(f"{text} would be tested on what it is trained on, the split {train}")
    return train, data.test or next((name for name in TESTS if name in splits and name != train), None)


def _part(dataset: Any, columns: Columns, split: str, where: str, side: int, part: str) -> Labelled:
    """Return the inputs of a split with their labels; raises ConfigError where it lacks a column."""
    for column in (columns.image, columns.label):
        if column not in dataset.features:
            raise unknown(f"column of the split {split} of {where}", column, dataset.features)
    if not len(dataset):
        raise ConfigError(f"the split {split} of {where} is empty")
    images: Images
    if columns.pictures:
        images = hub_pictures(dataset, columns.image, split, side)
    else:
        images = hub_inputs(dataset, columns.image, split, where, f"x_{part} of {where}")
    labels = ids_of(dataset, columns.label)
    if class_names(dataset.features, columns.label) and (labels < 0).any():
        raise ConfigError(f"the split {split} of {where} has no labels: name another, as in test=validation")
    # Whose an example is that is tested on need not be known.
    client = columns.client if columns.client in dataset.features else None
    owners = None if client is None else ids_of(dataset, client)
    clients = class_names(dataset.features, client) if client else ()
    return Labelled(images, labels, np.array(clients)[owners] if clients and owners is not None else owners)


def _opened(data: HubData, text: str) -> Mapping[str, Any]:
    """Return the splits by their names; raises ConfigError, in one line, for whatever the library raises."""
    set_defaults(LIBRARIES)
    path = data.path
    if path is None:
        log.info(f"{text} is loaded from the hub, or from Hugging Face's cache")
    try:
        with _quiet():
            loaded = _loaded(data, path)
    except ConfigError:
        raise
    except Exception as error:  # a stranger's files, or no network
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "" if path else "; without a network, name a folder that its save_to_disk wrote, hf:FOLDER"
        raise ConfigError(f"--dataset {text} cannot be loaded: {reason}{hint}") from None
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _loaded(data: HubData, path: Path | None) -> Any:
    import datasets

    if path is None:
        return datasets.load_dataset(data.place, data.subset)
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(path))
    kept = str(cache_folder() / "hub")
    if path.is_dir():
        return datasets.load_dataset(str(path), data.subset, cache_dir=kept)
    if path.suffix != PARQUET:
        raise ConfigError(f"--dataset {data}: a file must end in {PARQUET}; a folder is of save_to_disk or of parquet files")
    return datasets.load_dataset("parquet", data_files=glob.escape(str(path)), cache_dir=kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the library draw no bars meanwhile, nor tell of each try to reach the hub: what fails in the end is an error."""
    import datasets

    silent, loggers = datasets.are_progress_bars_disabled(), [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not silent:
            datasets.enable_progress_bars()
