"""Labelled images, with a mask each where a task has them, and how they become a model's input."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedact.config.paths import cache_folder
from fedact.data.files import Files
from fedact.data.kinds import is_picture


@dataclass(frozen=True, eq=False)
class Request:
    """What a run wants of a data set.

    path: --data-dir; the sizes matter only where examples are made to order, and so does needed: the fewest training
    examples that the fleet can be dealt, with the server's; generator: for what is random; side: pixels of
    a decoded picture, where the data set is one of files; of a scene's shorter side. The others are for masks: void: the id
    that counts for nothing where a data set does not say itself; partition_by: "class" or "source", what the labels are;
    cache: where decoded files are kept.
    """

    path: Path
    max_examples: int | None
    max_test_examples: int | None
    generator: np.random.Generator
    side: int = 64
    void: int = 255
    partition_by: str = "class"
    needed: int = 0
    cache: Path = field(default_factory=lambda: cache_folder() / "decoded")


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an array, copied only where they are asked for."""

    array: np.ndarray | Files
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: np.ndarray | slice) -> np.ndarray:
        chosen: np.ndarray = self.array[self.rows[positions]]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.rows], dtype)


Images = np.ndarray | Files | Rows


@dataclass(frozen=True, eq=False)
class Examples:
    """images: pictures or series, or rows of such an array; labels: int64 (examples,).

    Pictures are uint8, uint16 or float32 (examples, height, width, 1 or 3). Series are float32 of any other shape, such as
    (examples, channels, steps), and go to a model as they are but for their mean and deviation.
    masks: uint8 (examples, height, width), or rows of such an array: the class of each pixel, VOID where none counts. Then
    the labels are only what the examples are dealt by. pixels: int64 (examples, classes), how many pixels of each class a
    mask has in its full size; of examples with masks alone. clients: int64 (examples,), whose each is, as numbers of the
    data set's ``client_names``, -1 for nobody's; None where nobody's is known.
    """

    images: Images
    labels: np.ndarray
    masks: Images | None = None
    pixels: np.ndarray | None = None
    clients: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: np.ndarray) -> "Examples":
        """Return a copy of the examples at these positions."""
        masks = None if self.masks is None else self.masks[positions]
        return self._with(self.images[positions], masks, positions)

    def subset(self, positions: np.ndarray) -> "Examples":
        """Return the examples at these positions without copying their images and masks."""
        if len(positions) == len(self) and np.array_equal(positions, np.arange(len(self))):
            return self
        masks = None if self.masks is None else _rows(self.masks, positions)
        return self._with(_rows(self.images, positions), masks, positions)

    def _with(self, images: Images, masks: Images | None, positions: np.ndarray) -> "Examples":
        pixels, clients = (None if array is None else array[positions] for array in (self.pixels, self.clients))
        return Examples(images, self.labels[positions], masks, pixels, clients)

    def class_sizes(self, classes: int) -> np.ndarray:
        """Return how many examples of each class there are, or pixels where there are masks: int64 (classes,)."""
        if self.pixels is not None:
            sizes: np.ndarray = self.pixels.sum(0)[:classes]
            return sizes
        return np.bincount(self.labels, minlength=classes)


def _rows(array: Images, positions: np.ndarray) -> Rows:
    return Rows(array.array, array.rows[positions]) if isinstance(array, Rows) else Rows(array, positions)


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: what may be trained on, what is only tested on, and the classes' names, none where they are not known.

    The classes are those of the labels, or of the masks' pixels where there are masks. server_examples: how many the server
    keeps of its half at most, None for all; what is made to order grows with the fleet, not with what there is to learn.
    client_names: of those who hold the examples, by the numbers in these; none where nobody's is known.
    """

    train: Examples
    test: Examples
    classes: int
    names: tuple[str, ...] = ()
    server_examples: int | None = None
    client_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """Examples to a model's input, float32.

    Pictures: whole numbers to 0 to 1 (floats stay), the shorter side to ``resize``, the middle ``resolution`` square, and
    mean and std by channel, as many as the model takes: a grey picture is repeated. whole: pictures stay in their frame,
    neither scaled nor cut. Series: mean and std by channel, their second dimension, and nothing else.
    """

    resolution: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool = False

    def __call__(self, images: np.ndarray) -> Float[Tensor, "examples ..."]:
        if is_picture(images.shape):
            x = _unit(images).permute(0, 3, 1, 2)
            x = x if self.whole else _middle(_resized(x, self.resize), self.resolution)
            x = x.expand(-1, len(self.mean), -1, -1)
        else:
            x = torch.from_numpy(images)
        mean, std = (torch.tensor(values).view(-1, *[1] * (x.dim() - 2)) for values in (self.mean, self.std))
        return ((x - mean) / std).contiguous()

    def input_shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one input, made of images of this shape (examples, ...)."""
        if not is_picture(images):
            return images[1:]
        return (len(self.mean), *(images[1:3] if self.whole else (self.resolution, self.resolution)))


@dataclass(frozen=True, eq=False)
class Loader:
    """Takes positions of some examples and returns their inputs and targets, ready for the model."""

    examples: Examples
    preprocessing: Preprocessing
    device: str = "cpu"

    def __call__(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        images = self.examples.images[positions]
        return self.preprocessing(images).to(self.device), self.targets(positions)

    def targets(self, positions: np.ndarray) -> Tensor:
        """Return the targets alone: int64 masks (examples, height, width) where there are any, else labels (examples,)."""
        masks = self.examples.masks
        chosen = self.examples.labels[positions] if masks is None else masks[positions]
        return torch.from_numpy(chosen).to(self.device).long()

    def __len__(self) -> int:
        return len(self.examples)


def _unit(pictures: np.ndarray) -> Tensor:
    """Return pictures as float32, whole numbers from 0 to 1."""
    if pictures.dtype.kind == "f":
        return torch.from_numpy(pictures)
    if pictures.dtype == np.uint8:
        return torch.from_numpy(pictures).float() / 255
    return torch.from_numpy(pictures.astype(np.float32)) / np.iinfo(pictures.dtype).max


def _resized(x: Tensor, shorter: int) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) == shorter:
        return x
    scale = shorter / min(height, width)
    size = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _middle(x: Tensor, side: int) -> Tensor:
    top, left = (x.shape[-2] - side) // 2, (x.shape[-1] - side) // 2
    return x[..., top : top + side, left : left + side]
