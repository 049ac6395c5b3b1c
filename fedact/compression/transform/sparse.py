"""1 x 1 convolutions of images with few nonzero coefficients, without decoding them."""

from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import nonzeros, read
from fedact.compression.transform.cosine import Frequencies, inverse
from fedact.compression.transform.decoder import Shape

FEWEST_OUTPUTS = 64
"""Output channels at a time, at least: with fewer the parts' overhead is more than what they save."""
ROW_COST = 100
"""Transforming a row's outputs takes about as long as multiplying them by so many channels; a sum's term, by two."""


class Sums(NamedTuple):
    """Sums of rows of a table, each row with a weight: the rows, where each sum begins, the weights."""

    rows: Int[Tensor, " n"]
    begins: Int[Tensor, " sums"]
    weights: Float[Tensor, " n"]

    def of(self, table: Float[Tensor, "rows outputs"]) -> Float[Tensor, "sums outputs"]:
        """Return the sums of a table's rows."""
        return F.embedding_bag(self.rows, table, self.begins, mode="sum", per_sample_weights=self.weights)


def output(
    packed: UInt8[Tensor, " bytes"], shape: Shape, by: Frequencies, weight: Float[Tensor, "outputs channels"]
) -> Float[Tensor, "batch height width outputs"] | None:
    """Return the images behind ``packed`` times a weight; None where decoding is faster."""
    batch, height, width, channels = shape
    rows, outputs = batch * height * width, len(weight)
    parts = _parts(packed, rows, channels, outputs)
    if not parts:
        return None
    decoded = read(packed.numpy(), batch, channels, by.rings)
    sums, means = sums_of(decoded.values, decoded.rows, decoded.channels, rows), torch.from_numpy(decoded.means)
    del decoded
    images = weight.new_empty(batch, height, width, outputs)
    for place, part in zip(images.tensor_split(parts, dim=3), weight.tensor_split(parts), strict=True):
        place.copy_(inverse(_multiples(sums, means, part.T.contiguous(), shape), by))
    return images


def _multiples(
    sums: Sums, means: Float[Tensor, " channels"], weight: Float[Tensor, "channels outputs"], shape: Shape
) -> Float[Tensor, "batch height width outputs"]:
    """Return the sparse coefficients times a weight."""
    coefficients = sums.of(weight).view(*shape[:3], -1)
    coefficients[:, 0, 0] += means @ weight
    return coefficients


def _parts(packed: Tensor, rows: int, channels: int, outputs: int) -> int:
    """Return in how many parts of the outputs to compute, 0 where decoding is faster or takes less working memory."""
    if packed.device.type != "cpu":
        return 0
    # Decoding takes a tensor of all channels, and a quarter at least for the transform on the way.
    at_once = rows * channels * 5 // 4 // max(3 * rows, rows + channels)
    parts = ceil(outputs / at_once) if at_once else 0
    fast = at_once >= min(FEWEST_OUTPUTS, outputs) and 2 * nonzeros(packed.numpy()) + ROW_COST * rows < rows * channels
    return parts if fast else 0


def sums_of(values: Float[np.ndarray, " n"], into: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], count: int) -> Sums:
    """Return the sums, so many, of rows with these values as weights."""
    # Numbers of 16 bits are sorted by their digits.
    order = into.astype(np.uint16 if count < 2**16 else np.int32).argsort(kind="stable")
    counts = np.bincount(into, minlength=count)
    begins = (counts.cumsum() - counts).astype(np.int32)
    return Sums(torch.from_numpy(rows[order]), torch.from_numpy(begins), torch.from_numpy(values[order]))
