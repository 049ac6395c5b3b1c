"""Arrays in a column of a Hugging Face data set: read at once, or where they are large each when it is asked for."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from fedact.config.errors import ConfigError
from fedact.data.kinds import checked_inputs
from fedact.data.readers.hub_columns import inputs_of
from fedact.data.readers.hub_pictures import HubRows, place_of

ON_DISK_FROM = 2**28
"""Bytes of a column from which on it is not read into memory."""


@dataclass(frozen=True, eq=False)
class HubSeries(HubRows):
    """Arrays of one shape and type in the form in which examples are kept. rows: as numpy's. like: the first of them."""

    rows: Any
    column: str
    like: np.ndarray

    noun: ClassVar[str] = "arrays"

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.like.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.like.dtype

    @property
    def decoding(self) -> str:
        return f"hub {self.key}, as they are, 1 {self.dtype} {self.item_shape} "

    @property
    def item_size(self) -> str:
        return f"{' x '.join(map(str, self.item_shape))} numbers"

    def decode(self, row: int) -> np.ndarray:
        value = _kept(self.rows, self.column, int(row), "it")
        if (value.shape, value.dtype) != (self.item_shape, self.dtype):
            raise ValueError(f"it is {value.dtype} {value.shape}, the first is {self.dtype} {self.item_shape}")
        return value


def hub_inputs(dataset: Any, column: str, split: str, where: str, what: str) -> np.ndarray | HubSeries:
    """Return a column of arrays in the form in which examples are kept.

    where, what: name the data set and these inputs in errors. Raises ConfigError as ``checked_inputs`` does.
    """
    rows = dataset.with_format("numpy", columns=[column])
    first = np.asarray(rows[0][column])
    # Whole numbers are of one type only where all are looked at.
    sure = first.dtype.kind == "f" or first.dtype in (np.uint8, np.uint16)
    if not sure or prod(first.shape) * first.itemsize * len(dataset) < ON_DISK_FROM:
        return checked_inputs(inputs_of(dataset, column, where), what)
    like = _kept(rows, column, 0, f"{what}, row 0,")
    return HubSeries(**place_of(dataset, column, split), rows=rows, column=column, like=like)


def _kept(rows: Any, column: str, row: int, what: str) -> np.ndarray:
    value = np.asarray(rows[row][column])
    if value.dtype.hasobject:
        raise ConfigError(f"{what} has a gap")
    kept: np.ndarray = checked_inputs(value[None], what)[0]
    return kept
