"""1 x 1 convolutions of images with few nonzero coefficients, without decoding them: weight gradient and output."""

from math import ceil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import nonzeros, read
from fedact.compression.transform.coefficients import in_ledger
from fedact.compression.transform.cosine import Frequencies, adjoint, inverse
from fedact.compression.transform.decoder import DECODED_BYTES

FEWEST_OUTPUTS = 64
"""Output channels at a time, at least: with fewer the parts' overhead is more than what they save."""
ROW_COST = 100
"""Transforming a row's outputs takes about as long as multiplying them by so many channels; a sum's term, by two."""
Shape = tuple[int, int, int, int]


class Sums(NamedTuple):
    """Sums of rows of a table, each row with a weight: the rows, where each sum begins, the weights."""

    rows: Int[Tensor, " n"]
    begins: Int[Tensor, " sums"]
    weights: Float[Tensor, " n"]

    def of(self, table: Float[Tensor, "rows outputs"]) -> Float[Tensor, "sums outputs"]:
        """Return the sums of a table's rows."""
        return F.embedding_bag(self.rows, table, self.begins, mode="sum", per_sample_weights=self.weights)


def weight_gradient(
    packed: UInt8[Tensor, " bytes"], shape: Shape, by: Frequencies, grad_output: Float[Tensor, "batch height width outputs"]
) -> Float[Tensor, "outputs channels"] | None:
    """Return the gradient of the weight that the images behind ``packed`` are multiplied by; None where decoding is faster.

    The sum over positions of gradients times images is one over frequencies: of the gradients under the inverse's adjoint,
    times the few coefficients.
    """
    batch, height, width, channels = shape
    rows, outputs = batch * height * width, grad_output.shape[-1]
    parts = _parts(packed, rows, channels, outputs, 2 * rows)
    if not parts:
        return None
    numpys = in_ledger(DECODED_BYTES * nonzeros(packed.numpy()))
    decoded = read(packed.numpy(), batch, channels, by.rings)
    sums, means = _sums(decoded.values, decoded.channels, decoded.rows, channels), torch.from_numpy(decoded.means)
    del decoded, numpys
    gradient = grad_output.new_empty(outputs, channels)
    for place, part in zip(gradient.tensor_split(parts), grad_output.tensor_split(parts, dim=3), strict=True):
        place.copy_(_products(sums, means, adjoint(part, by)).T)
    return gradient


def output(
    packed: UInt8[Tensor, " bytes"], shape: Shape, by: Frequencies, weight: Float[Tensor, "outputs channels"]
) -> Float[Tensor, "batch height width outputs"] | None:
    """Return the images behind ``packed`` times a weight; None where decoding is faster."""
    batch, height, width, channels = shape
    rows, outputs = batch * height * width, len(weight)
    parts = _parts(packed, rows, channels, outputs, 3 * rows)
    if not parts:
        return None
    numpys = in_ledger(DECODED_BYTES * nonzeros(packed.numpy()))
    decoded = read(packed.numpy(), batch, channels, by.rings)
    sums, means = _sums(decoded.values, decoded.rows, decoded.channels, rows), torch.from_numpy(decoded.means)
    del decoded, numpys
    images = weight.new_empty(batch, height, width, outputs)
    for place, part in zip(images.tensor_split(parts, dim=3), weight.tensor_split(parts), strict=True):
        place.copy_(inverse(_multiples(sums, means, part.T.contiguous(), shape), by))
    return images


def _products(
    sums: Sums, means: Float[Tensor, " channels"], coefficients: Float[Tensor, "batch height width outputs"]
) -> Float[Tensor, "channels outputs"]:
    """Return the products of the sparse coefficients and others, summed over examples and frequencies."""
    products = sums.of(coefficients.reshape(-1, coefficients.shape[-1]))
    return products.addr_(means, coefficients[:, 0, 0].sum(0))


def _multiples(
    sums: Sums, means: Float[Tensor, " channels"], weight: Float[Tensor, "channels outputs"], shape: Shape
) -> Float[Tensor, "batch height width outputs"]:
    """Return the sparse coefficients times a weight."""
    coefficients = sums.of(weight).view(*shape[:3], -1)
    coefficients[:, 0, 0] += means @ weight
    return coefficients


def _parts(packed: Tensor, rows: int, channels: int, outputs: int, scratch: int) -> int:
    """Return in how many parts of the outputs to compute, 0 where decoding is faster or takes less working memory.

    scratch: elements that each output takes on the way.
    """
    if packed.device.type != "cpu":
        return 0
    # Decoding takes a tensor of all channels, and a quarter at least for the transform on the way.
    at_once = rows * channels * 5 // 4 // max(scratch, rows + channels)
    parts = ceil(outputs / at_once) if at_once else 0
    fast = at_once >= min(FEWEST_OUTPUTS, outputs) and 2 * nonzeros(packed.numpy()) + ROW_COST * rows < rows * channels
    return parts if fast else 0


def _sums(values: Float[np.ndarray, " n"], into: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"], count: int) -> Sums:
    """Return the sums, so many, of rows with these values as weights."""
    # Numbers of 16 bits are sorted by their digits.
    order = into.astype(np.uint16 if count < 2**16 else np.int32).argsort(kind="stable")
    counts = np.bincount(into, minlength=count)
    begins = (counts.cumsum() - counts).astype(np.int32)
    return Sums(torch.from_numpy(rows[order]), torch.from_numpy(begins), torch.from_numpy(values[order]))
