"""Tiny data sets of Hugging Face's library, in memory and saved as it saves them."""

import io
from pathlib import Path

import datasets
import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

datasets.disable_progress_bars()

CLASSES = ["ant", "bee", "cow"]
PICTURE, CLASS, TEXT = datasets.Image(), ClassLabel(names=CLASSES), Value("string")


def encoded(pixels: np.ndarray) -> dict[str, bytes | None]:
    """Return a picture as a data set keeps it: a PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def shades(count: int, side: int = 12, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of three shades, and which shade: something to learn."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(seed).integers(0, 40, (count, side, side, channels))
    return (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels


def picture_set(pixels: np.ndarray, labels: np.ndarray, **columns) -> Dataset:
    """Return a data set of pictures ``image`` and classes ``label``, and of other columns: (values, type)."""
    pictures = [encoded(each.squeeze(-1) if each.shape[-1] == 1 else each) for each in pixels]
    values = {"image": pictures, "label": labels.tolist(), **{name: list(given) for name, (given, _) in columns.items()}}
    types = {"image": PICTURE, "label": CLASS, **{name: kind for name, (_, kind) in columns.items()}}
    return Dataset.from_dict(values, features=Features(types))


def series_set(series: np.ndarray, labels: list[str]) -> Dataset:
    """Return a data set of series ``signal``, of the same as vectors ``flat``, and of texts ``kind``."""
    features = {
        "signal": Array2D(series.shape[1:], "float32"), "flat": List(Value("float32"), length=series[0].size), "kind": TEXT,
    }  # fmt: skip
    values = {"signal": list(series), "flat": list(series.reshape(len(series), -1)), "kind": labels}
    return Dataset.from_dict(values, features=Features(features))


def save(folder: Path, **splits: Dataset) -> Path:
    """Write splits as ``save_to_disk`` does."""
    DatasetDict(splits).save_to_disk(str(folder))
    return folder
