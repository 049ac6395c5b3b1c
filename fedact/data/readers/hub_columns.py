"""The columns of a Hugging Face data set: which holds the inputs, which the labels, found by their types or as named."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedact.config.errors import ConfigError, unknown
from fedact.config.hub import HubData
from fedact.data.items import of_items
from fedact.data.own import Arrays

USUAL_LABELS = ("label", "labels")
"""Of several columns that may hold the labels, the one that is called so."""
IDS = ("class", "text", "number")
TEXTS = ("string", "large_string", "string_view")


class Columns(NamedTuple):
    """The names of the columns, and whether the inputs are encoded pictures. client: None where nobody's is known."""

    image: str
    label: str
    client: str | None
    pictures: bool


def find_columns(features: Mapping[str, Any], wanted: HubData, where: str) -> Columns:
    """Return the columns that are named, else those whose types say what they are.

    Raises ConfigError, which names the candidates, where several could be it, where none could, or for an unknown name.
    """
    kinds = {name: _kind(feature) for name, feature in features.items()}
    for column in (wanted.image, wanted.series, wanted.label, wanted.client):
        if column is not None and column not in features:
            raise unknown(f"column of {where}", column, features)
    pictures = [name for name, kind in kinds.items() if kind == "picture"]
    series = [name for name, kind in kinds.items() if kind == "array"]
    given = wanted.image or wanted.series
    image = _one(given, [*pictures, *series] if given or not pictures else pictures, "image or series", kinds, where)
    others = [name for name in features if name not in (image, wanted.client)]
    classes = [name for name in others if kinds[name] == "class"]
    plain = [name for name in others if kinds[name] in ("text", "number")]
    usual = [name for name in classes or plain if name in USUAL_LABELS]
    label = _one(wanted.label, [*classes, *plain] if wanted.label else usual or classes or plain, "label", kinds, where)
    if wanted.client is not None:
        _one(
            wanted.client, [name for name in features if kinds[name] in ("class", "text", "number")], "client", kinds, where
        )
    return Columns(image, label, wanted.client, kinds[image] == "picture")


def _one(given: str | None, candidates: Sequence[str], what: str, kinds: Mapping[str, str], where: str) -> str:
    if given is not None and given in candidates:
        return given
    if given is None and len(candidates) == 1:
        return candidates[0]
    key = what.split()[0]
    if given is not None:
        allowed = ", ".join(candidates) or "none"
        raise ConfigError(f"{where}: {given} holds {kinds[given]}s, which are no {what}: allowed are {allowed}")
    if candidates:
        listed = ", ".join(candidates)
        raise ConfigError(f"{where} has several columns that may be {what}: {listed}; name one, as in {key}={candidates[0]}")
    found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise ConfigError(f"{where} has no column that may be {what}: it has {found or 'none'}")


def _kind(feature: Any) -> str:
    """Return what a column holds, by its type: picture, array, class, text, number or other."""
    import datasets

    if isinstance(feature, datasets.Image):
        return "picture"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(feature, datasets.Value):
        return "text" if feature.dtype in TEXTS else "number" if feature.dtype.lstrip("u").startswith("int") else "other"
    arrays = (datasets.Array2D, datasets.Array3D, datasets.Array4D)
    return "array" if isinstance(feature, arrays) or _holds_numbers(feature) else "other"


def _holds_numbers(feature: Any) -> bool:
    """Tell whether a type is a list of numbers, or of such lists."""
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_numbers(feature.feature) or (
            isinstance(feature.feature, datasets.Value) and feature.feature.dtype.lstrip("u").startswith(("int", "float"))
        )
    return False


def inputs_of(dataset: Any, column: str, where: str) -> np.ndarray:
    """Return a column of arrays as one array; raises ConfigError where they have several shapes."""
    values = np.asarray(dataset.with_format("numpy", columns=[column])[:][column])
    if values.dtype.hasobject:
        raise ConfigError(f"{where}: {column} must hold arrays of one shape, without gaps")
    return values


def ids_of(dataset: Any, column: str) -> np.ndarray:
    """Return a column of labels or clients: whole numbers or texts, classes as numbers."""
    return np.asarray(dataset.with_format("numpy", columns=[column])[:][column])


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the names of the classes that a column numbers; none where it holds texts or any numbers."""
    return tuple(getattr(features[column], "names", None) or ())


def pairs_of(dataset: Any, where: str) -> Arrays:
    """Return a Hugging Face data set in memory as arrays, its classes by their names; pictures must be of one size.

    Raises ConfigError where its columns do not say what they are.
    """
    columns = find_columns(dataset.features, HubData(where), where)
    labels, names = ids_of(dataset, columns.label), class_names(dataset.features, columns.label)
    if names:
        if (blank := np.flatnonzero(labels < 0)).size:
            raise ConfigError(f"{where}: row {blank[0]} has no label")
        labels = np.array(names)[labels]
    if not columns.pictures:
        return Arrays(inputs_of(dataset, columns.image, where), labels)
    pictures = dataset.with_format(None).select_columns([columns.image])
    return Arrays(*of_items(_Pairs(pictures, columns.image, labels), where))


class _Pairs:
    """The pictures of a data set, each with its label."""

    def __init__(self, dataset: Any, column: str, labels: np.ndarray) -> None:
        self.dataset, self.column, self.labels = dataset, column, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.dataset[row][self.column], self.labels[row]
