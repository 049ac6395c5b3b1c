"""Cosine transforms in space, and how much a spatial frequency matters for a weight gradient."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.coefficients import in_ledger
from fedact.compression.transform.matrices import MADE_BYTES, Column, Table, of_positions, squared_radius, weighted

RINGS = 64
"""Groups of frequencies that share a level."""
SMALL_MAP = 16
"""Positions of a map that one matrix transforms at once; of larger ones rows and columns are transformed in turn."""
LONG, MOST_COLUMNS = 256, 64
"""Positions of a series up to which it is one column, and the most that a longer one's rows have."""
SMALL_SIDE = 32
"""Rows and columns of a map up to which its tables, 17 kB at most, are kept."""
FEW = 2
"""Times rows and columns: frequencies up to which each by itself takes less time than all of them by rows and columns."""
CHUNK_ELEMENTS, WHOLE_ELEMENTS = 2**18, 2**16
"""Elements transformed at a time: what fits a core's cache; a tensor of fewer than the second is transformed at once."""


Matrices = tuple[Column] | tuple[Float[Tensor, "n n"], ...]


class Frequencies(NamedTuple):
    """A weighted cosine transform of maps of one size: matrices of rows and columns, and the rings.

    forward and back: of rows and columns; or one of all positions, for a small map or a column, of a long one a few rows at
    a time; or none, for one position.
    rings: the group of each position (u, v), in row-major order, the lowest frequencies first.
    """

    forward: Matrices
    back: Matrices
    rings: UInt8[np.ndarray, " positions"]


def images_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (batch, height, width, channels) of a kept tensor (batch, channels, *positions): of tokens and series a column.

    A long series is cut into rows of up to 64 of its positions: the transform of all of them would need a large matrix.
    """
    batch, channels, *positions = shape if len(shape) > 1 else (1, *shape)
    if len(positions) == 2:
        return batch, positions[0], positions[1], channels
    count = prod(positions)
    width = 1 if count <= LONG else next((width for width in range(MOST_COLUMNS, 1, -1) if count % width == 0), 1)
    return batch, count // width, width, channels


def as_images(x: Tensor) -> Float[Tensor, "batch height width channels"]:
    """Return a kept tensor with its channels last; no copy of one that is in memory like that, in float32."""
    last = x.movedim(1, -1) if x.dim() > 1 else x
    return last.reshape(images_shape(x.shape)).float().contiguous()


def from_images(images: Float[Tensor, "batch height width channels"], shape: Sequence[int]) -> Tensor:
    """Return the kept tensor behind ``as_images``, of the images' channels."""
    if len(shape) < 2:
        return images.reshape(tuple(shape))
    return images.reshape(shape[0], *shape[2:], -1).movedim(-1, 1)


def frequencies(height: int, width: int, decay: float) -> Frequencies:
    """Return the transform of maps of a size; decay: how fast the weights decay towards the higher frequencies."""
    if height * width == 1:
        return Frequencies((), (), np.zeros(1, dtype=np.uint8))
    if width == 1 and height > SMALL_SIDE:
        numpys = in_ledger(MADE_BYTES * height)
        rings = _in_memory(_rings(height, width))
        del numpys
        return Frequencies((Column(height, -decay),), (Column(height, decay, transposed=True),), rings)
    # Arithmetic on a few numbers is several times faster in numpy; what it makes on the way ends with this function.
    numpys = in_ledger(MADE_BYTES * max(height, width) ** 2)
    *matrices, rings = (_constants if max(height, width) <= SMALL_SIDE else _tables)(height, width, decay)
    # In memory that the ledger sees.
    forward, back = (tuple(map(_single, each)) for each in matrices)
    ledgers = _in_memory(rings)
    del numpys
    return Frequencies(forward, back, ledgers)


def _tables(height: int, width: int, decay: float) -> tuple[tuple[Table, ...], tuple[Table, ...], UInt8[np.ndarray, " n"]]:
    """Return the fields of ``Frequencies``."""
    rows = weighted(height, decay)
    columns = rows if width == height else weighted(width, decay)
    pairs, is_one = zip(rows, columns, strict=True), height * width <= SMALL_MAP or 1 in (height, width)
    forward, back = ((of_positions(*pair),) if is_one else pair for pair in pairs)
    return forward, back, _rings(height, width)


def _rings(height: int, width: int) -> UInt8[np.ndarray, " positions"]:
    radius = squared_radius(height, width)
    rings = np.empty(len(radius), dtype=np.uint8)
    rings[radius.argsort(kind="stable")] = np.arange(len(radius)) * min(RINGS, len(radius)) // len(radius)
    return rings


_constants = lru_cache(maxsize=16)(_tables)
"""The tables of small maps: constants of the program, made once; what a step works with is a copy that the ledger counts."""


def transform(images: Tensor, by: Frequencies, out: Tensor | None = None) -> Tensor:
    """Return the weighted coefficients of images, channel by channel; the first is sqrt(height x width) times the mean.

    out: contiguous, to write into; the images themselves may be that.
    """
    return _product(images, by.forward, out)


def inverse(coefficients: Tensor, by: Frequencies, out: Tensor | None = None) -> Tensor:
    """Return the images behind ``transform``."""
    return _product(coefficients, by.back, out)


def adjoint(images: Tensor, by: Frequencies) -> Tensor:
    """Return images under the adjoint of ``inverse``."""
    if len(by.back) == 1 and isinstance(by.back[0], Column):
        return _product(images, (by.back[0].T,), None)
    return _product(images, tuple(matrix.T.contiguous() for matrix in by.back), None)


def images_of(frequencies: Int[np.ndarray, " n"], by: Frequencies) -> Float[Tensor, "n positions"]:
    """Return what ``inverse`` makes of a one at each of these frequencies."""
    if len(by.back) == 1:
        return by.back[0].T[torch.from_numpy(frequencies)]
    pairs = zip(by.back, divmod(frequencies, len(by.back[1])), strict=True)
    rows, columns = (matrix.T[torch.from_numpy(each)] for matrix, each in pairs)
    return (rows[:, :, None] * columns[:, None]).flatten(1)


def at_once(shape: Sequence[int]) -> int:
    """Return how many examples are transformed at a time: no more than a cacheful, and of a larger tensor a quarter."""
    batch, each = shape[0], max(1, prod(shape[1:]))
    quarter = batch if batch * each <= WHOLE_ELEMENTS else ceil(batch / 4)
    return max(1, min(quarter, CHUNK_ELEMENTS // each))


def chunks(images: Tensor) -> Iterator[Tensor]:
    """Yield views of a few examples at a time."""
    yield from torch.split(images, at_once(images.shape))


def _product(images: Tensor, matrices: Matrices, out: Tensor | None) -> Tensor:
    """Return images multiplied along width, then height, or over all positions; without a matrix the images themselves."""
    batch, height, width, channels = images.shape
    if len(matrices) == 1 and isinstance(matrices[0], Column):
        out = None if out is None else out.view(batch, height, channels)
        return matrices[0].product(images.flatten(1, 2), out).view(images.shape)
    if len(matrices) == 2:
        # Width first: a slice of channels need not be copied together for it.
        rows, columns = (matrix.to(images.device) for matrix in matrices)
        images = torch.bmm(columns.expand(batch * height, width, width), images.flatten(0, 1))
        images, matrix = images.view(batch, height, width * channels), rows
    elif matrices:
        images, matrix = images.flatten(1, 2), matrices[0].to(images.device)
    else:
        return images
    out = None if out is None else out.view(images.shape)
    product = torch.bmm(matrix.expand(batch, *matrix.shape), images, out=out)
    return product.view(batch, height, width, channels)


def _single(matrix: Table) -> Tensor:
    """Return a matrix in memory that the ledger sees."""
    single = torch.empty(matrix.shape)
    single.numpy()[:] = matrix
    return single


def _in_memory(rings: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
    """Return rings in memory that the ledger sees."""
    ledgers: UInt8[np.ndarray, " n"] = torch.empty(len(rings), dtype=torch.uint8).numpy()
    ledgers[:] = rings
    return ledgers
