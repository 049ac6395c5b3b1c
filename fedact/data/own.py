"""Data of one's own: arrays, tensors, and data sets of PyTorch and Hugging Face, as the examples of a run."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.class_ids import classes_of_ids
from fedact.data.examples import Examples, Images, Source
from fedact.data.items import NAMES, as_array, of_items
from fedact.data.kinds import checked_inputs, is_picture

MOST_CLASSES, FEW_CLASSES = 100_000, 1000
"""Up to the second there may be fewer training examples than classes."""

FEW_SHOWN = 5
log = logging.getLogger(__name__)


class Arrays(NamedTuple):
    """Inputs, their labels, and where it is known, whose they are.

    x: (examples, ...), pictures or series, see ``kinds.checked_inputs``. y: (examples,) whole numbers or texts. clients:
    (examples,) whole numbers or texts.
    """

    x: np.ndarray
    y: np.ndarray
    clients: np.ndarray | None = None


def as_arrays(data: Any, name: str = "the data") -> Arrays:
    """Return data as arrays: ``(x, y)`` or ``(x, y, clients)``, a map-style data set of PyTorch, one of Hugging Face.

    Each may be arrays, tensors or lists; an item of a data set is an input, which may be a Pillow picture, its label, and
    perhaps whose it is. name: what errors call the data. Raises ConfigError for anything else.

    >>> as_arrays((np.zeros((2, 6, 128)), [0, 1])).x.shape
    (2, 6, 128)
    """
    if isinstance(data, Arrays):
        return data
    if isinstance(data, tuple):
        if len(data) not in (2, 3):
            raise ConfigError(f"{name} must be (x, y) or (x, y, clients), not {len(data)} values")
        return Arrays(*(as_array(part, f"{what} of {name}") for part, what in zip(data, NAMES, strict=False)))
    if hasattr(data, "column_names") and hasattr(data, "features"):
        from fedact.data.readers.hub_columns import pairs_of

        return pairs_of(data, name)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or hasattr(data, "keys"):
        raise ConfigError(
            f"{name} must be (x, y), (x, y, clients) or a data set with a length whose items are (x, y), not "
            f"{type(data).__name__}"
        )
    return Arrays(*of_items(data, name))


def source_of(train: Arrays, test: Arrays, where: str) -> Source:
    """Return a data set of arrays: classes numbered in the order of their labels, clients in that of their names.

    Labels with gaps and texts are the classes' names. where: names the data in errors. Raises ConfigError for arrays that
    are not what ``Arrays`` says, or do not belong together.
    """
    x_train, x_test = checked_inputs(train.x, f"x_train of {where}"), checked_inputs(test.x, f"x_test of {where}")
    check_alike(x_train, x_test, where)
    return numbered([Labelled(x_train, train.y, train.clients), Labelled(x_test, test.y, test.clients)], where)


PARTS = ("train", "test")


class Labelled(NamedTuple):
    """Images of any kind with their labels, and whose they are, as a data set calls these."""

    images: Images
    labels: np.ndarray
    clients: np.ndarray | None = None


def numbered(parts: Sequence[Labelled], where: str, classes: Sequence[str] = ()) -> Source:
    """Return the data set of two parts, to train and to test on, with classes and clients numbered; one part is both.

    classes: their names, where the labels number these already. Raises ConfigError for labels and clients that are none.
    """
    named = list(zip(PARTS, parts, strict=False))
    labels = [checked_ids(part.labels, f"y_{name} of {where}", len(part.images)) for name, part in named]
    known, names = (np.arange(len(classes)), tuple(classes)) if classes else _classes(labels, where)
    for name, ids in zip(PARTS, labels, strict=False):
        if strange := ids[~np.isin(ids, known)].tolist():
            raise ConfigError(f"y_{name} of {where} holds {strange[0]}, which is none of its {len(known)} classes")
    owners = [
        None if part.clients is None else checked_ids(part.clients, f"client_{name} of {where}", len(part.images))
        for name, part in named
    ]
    clients = _union([each for each in owners if each is not None], f"client_train and client_test of {where}")
    made = [
        Examples(part.images, np.searchsorted(known, ids), clients=None if own is None else np.searchsorted(clients, own))
        for part, ids, own in zip(parts, labels, owners, strict=True)
    ]
    return Source(made[0], made[-1], len(known), names, client_names=tuple(map(str, clients.tolist())))


def check_alike(train: Images, test: Images, where: str) -> None:
    """Raise ConfigError where what is trained and tested on are inputs of two kinds."""
    pictures = is_picture(train.shape) and is_picture(test.shape) and train.shape[3] == test.shape[3]
    if train.dtype != test.dtype or not (pictures or train.shape[1:] == test.shape[1:]):
        raise ConfigError(
            f"x_train and x_test of {where} must be alike, not {train.dtype} {train.shape} and {test.dtype} {test.shape}"
        )


def checked_ids(ids: np.ndarray, what: str, count: int) -> np.ndarray:
    """Return labels or clients as int64 or as texts (count,); raises ConfigError where they are neither, or not as many."""
    if ids.shape != (count,) or ids.dtype.kind not in "iuUS":
        raise ConfigError(f"{what} must be {count} whole numbers or texts, not {ids.dtype} {ids.shape}")
    if ids.dtype.kind == "S":
        try:
            ids = np.char.decode(ids, "utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{what} holds bytes that are no text in UTF-8") from None
    if ids.dtype.kind == "U":
        if (blank := np.flatnonzero(np.char.strip(ids) == "")).size:
            raise ConfigError(f"{what} holds an empty text, of example {blank[0]}")
        try:
            "".join(np.unique(ids).tolist()).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{what} holds a text that is not Unicode") from None
        return ids
    if ids.dtype.kind == "u" and ids.max() > np.iinfo(np.int64).max:
        raise ConfigError(f"{what} holds {ids.max():,}, which is too large")
    return ids.astype(np.int64)


def _classes(parts: Sequence[np.ndarray], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return all labels in order, and the classes' names, none where each is its own class."""
    labels = _union(parts, f"y_train and y_test of {where}")
    if labels.dtype.kind != "U" and (labels[0] < 0 or labels[-1] >= MOST_CLASSES):
        part = next(name for name, ids in zip(PARTS, parts, strict=False) if ids.min() < 0 or ids.max() >= MOST_CLASSES)
        strange = labels[0] if labels[0] < 0 else labels[-1]
        raise ConfigError(
            f"y_{part} of {where} holds the label {strange:,}, which is not between 0 and {MOST_CLASSES - 1:,}"
        )
    examples = len(parts[0])
    if len(labels) > max(FEW_CLASSES, examples):
        raise ConfigError(f"{where} has {examples:,} examples to train on, but {len(labels):,} labels: too many classes")
    _check_known(parts, where)
    return labels, tuple(labels.tolist()) if labels.dtype.kind == "U" else classes_of_ids(labels.tolist(), where)[1]


def _check_known(parts: Sequence[np.ndarray], where: str) -> None:
    """Name the classes that are tested and that no training example has; raise ConfigError where all are such."""
    unknown = np.setdiff1d(parts[-1], parts[0]).tolist()
    some = ", ".join(map(str, unknown[:FEW_SHOWN])) + (", ..." if len(unknown) > FEW_SHOWN else "")
    if unknown and len(unknown) == len(np.unique(parts[-1])):
        raise ConfigError(f"no label in y_test of {where} is one in y_train: {some} are only tested, and nobody learns them")
    if unknown:
        log.warning(f"{where}: no training example has the label {some}, which the test examples have")


def _union(parts: Sequence[np.ndarray], what: str) -> np.ndarray:
    """Return all different ids in order; raises ConfigError where some are numbers and some are texts."""
    if len({part.dtype.kind for part in parts}) > 1:
        raise ConfigError(f"{what} must be both whole numbers or both texts")
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
