"""The matrices of weighted cosine transforms: whole ones of rows and columns, and of long series a few rows at a time."""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fedact.compression.transform.coefficients import in_ledger

REFERENCE_SIZE = 7
"""Rows of a classifier's last feature map: a frequency counts in cycles over so many rows, whatever the map's size."""
MADE_BYTES = 32
"""Of numpy's memory at most, for an element of a matrix while it is made, or an element of a square of the larger size."""
ROWS_ELEMENTS = 1024
"""Of a long series' matrix, about as many elements are made at a time."""
KEPT_SIZE = 256
"""Of a series up to which a table of its cosines, 8 kB at most, is kept: a constant of the program."""

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """The matrix of a long series, which whole would often be larger than the tensor: its rows are made where they are used.

    Row f is frequency f's cosines times (1 + f^2)^exponent, f scaled like everywhere here; transposed: a row is a position.
    """

    size: int
    exponent: float
    transposed: bool = False

    @property
    def T(self) -> "Column":
        """The transpose, as a tensor has it."""
        return replace(self, transposed=not self.transposed)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n size"]:
        numpys = in_ledger(MADE_BYTES * len(rows) * self.size)
        some, every = rows.numpy(), np.arange(self.size)
        frequencies, positions = (every, some) if self.transposed else (some, every)
        make = _cosines if self.size > KEPT_SIZE else _cosines_of_table
        made = make(self.size, frequencies, positions)
        made *= (1 + _scaled(self.size)[frequencies, None] ** 2) ** self.exponent
        single = torch.empty(len(rows), self.size)
        single.numpy()[:] = made.T if self.transposed else made
        del numpys
        return single

    def product(self, x: Float[Tensor, "batch size channels"], out: Tensor | None) -> Float[Tensor, "batch size channels"]:
        """Return the matrix times x, example by example; out: to write into, not x itself."""
        out, few = torch.empty_like(x) if out is None else out, max(1, ROWS_ELEMENTS // self.size)
        # As many rows as take no more memory than a few with what makes them, or with their product.
        many = few * max(1, x[:, 0].numel() // self.size - MADE_BYTES // 4)
        for rows in torch.split(torch.arange(self.size), many):
            part = torch.empty(len(rows), self.size)
            for place, each in zip(torch.split(part, few), torch.split(rows, few), strict=True):
                place.copy_(self[each])
            part = part.to(x.device)
            torch.bmm(part.expand(len(x), *part.shape), x, out=out[:, rows[0] : rows[-1] + 1])
        return out


def cosine_matrix(size: int) -> NDArray[np.float64]:
    """Return the orthonormal cosine transform (DCT-II) of so many positions: a row a frequency, a column a position."""
    return _cosines(size, np.arange(size), np.arange(size))


def _cosines(size: int, frequencies: Int[np.ndarray, " m"], positions: Int[np.ndarray, " n"]) -> NDArray[np.float64]:
    """Return some rows and columns of ``cosine_matrix``."""
    matrix: NDArray[np.float64] = np.cos(np.pi / size * np.outer(frequencies, positions + 0.5)) * sqrt(2 / size)
    matrix[frequencies == 0] /= sqrt(2)
    return matrix


def _cosines_of_table(
    size: int, frequencies: Int[np.ndarray, " m"], positions: Int[np.ndarray, " n"]
) -> NDArray[np.float64]:
    """Return what ``_cosines`` does, to rounding: every element is one of 4 x size."""
    matrix: NDArray[np.float64] = _wave(size)[np.multiply.outer(frequencies, 2 * positions + 1) % (4 * size)]
    matrix[frequencies == 0] /= sqrt(2)
    return matrix


@lru_cache(maxsize=16)
def _wave(size: int) -> NDArray[np.float64]:
    wave: NDArray[np.float64] = np.cos(np.pi / 2 / size * np.arange(4 * size)) * sqrt(2 / size)
    return wave


def weighted(size: int, decay: float) -> tuple[Table, Table]:
    """Return ``cosine_matrix`` times each frequency's weight, and its inverse.

    A frequency f weighs (1 + f^2)^-decay, along rows and along columns. A weight gradient correlates the activation with the
    output gradient, whose energy falls off about as 1/(1 + f^2): an error at a high frequency does so much less harm, and a
    uniform step on weighted coefficients spends bits accordingly.
    """
    matrix = cosine_matrix(size)
    weights = (1 + _scaled(size) ** 2) ** -decay
    return (weights[:, None] * matrix).astype(np.float32), (matrix.T / weights).astype(np.float32)


def of_positions(rows: Table, columns: Table) -> Table:
    """Return the matrix of all positions of a map, row by row: Kronecker's product."""
    return (rows[:, None, :, None] * columns[:, None]).reshape(len(rows) * len(columns), -1)


def squared_radius(height: int, width: int) -> Float[np.ndarray, " positions"]:
    """Return every frequency's squared distance from the mean, in row-major order."""
    return np.add.outer(_scaled(height) ** 2, _scaled(width) ** 2).ravel()


def _scaled(size: int) -> NDArray[np.float64]:
    return np.arange(size, dtype=np.float64) * REFERENCE_SIZE / size
