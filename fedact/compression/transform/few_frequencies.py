"""Weight gradients of images with few nonzero frequencies, without the images: by Parseval's theorem a product of both."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.accumulation import Total
from fedact.compression.transform.bitstream import Decoded, read
from fedact.compression.transform.coefficients import in_ledger
from fedact.compression.transform.cosine import FEW, Frequencies, adjoint, images_of
from fedact.compression.transform.decoder import Shape
from fedact.compression.transform.sparse import FEWEST_OUTPUTS, Sums, sums_of

TERM_COST = 2
"""A coefficient's product with an output gradient takes about as long as so many of a matrix product."""
ROW_BYTES = 17
"""Of numpy's memory at most, for a row while those with coefficients are looked for."""
WORTH_IT = 0.8
"""Of the multiplications with the images, the most that the frequencies may take."""


def pointwise_gradient(
    packed: UInt8[Tensor, " bytes"],
    shape: Shape,
    by: Frequencies,
    grad_output: Float[Tensor, "batch height width outputs"],
    total: Total | None = None,
) -> Float[Tensor, "outputs channels"] | Decoded:
    """Return the gradient of the weight that the images behind ``packed`` are multiplied by.

    Or, where the images themselves are the faster way, the coefficients that were read. total: what to add the gradient to.

    The sum over positions of output gradients times images is one over frequencies: of the output gradients under the
    inverse transform's adjoint, at the few frequencies that an example's images have, times the coefficients.
    """
    batch, height, width, channels = shape
    positions, outputs, most = height * width, grad_output.shape[-1], batch * height * width
    decoded = read(packed.numpy(), batch, channels, by.rings)
    numpys = in_ledger(ROW_BYTES * most)
    used = np.zeros((batch, positions), dtype=np.int8)
    used.ravel()[decoded.rows] = 1
    # The means are among the first of every example.
    used[:, 0] = 1
    count = int(used.sum(1, dtype=np.int32).max())
    # Each frequency by itself, as many of every example; or all of them, by rows and columns.
    alone = count <= FEW * (height + width) or positions == 1
    rows = batch * count if alone else most
    products = TERM_COST * len(decoded.values) + (rows * positions if alone else 2 * most * (height + width))
    # Decoding takes a tensor of all channels, and a quarter at least for the transform on the way.
    at_once = (most * channels * 5 // 4 - rows * positions * alone) // (max(rows, 2 * most * (not alone)) + channels)
    if products > WORTH_IT * most * channels or at_once < min(FEWEST_OUTPUTS, outputs):
        return decoded
    places, basis = decoded.rows, None
    if alone and positions > 1:
        numbers = used.cumsum(1, dtype=np.int32)
        numbers += np.arange(batch, dtype=np.int32)[:, None] * np.int32(count) - 1
        places, basis = numbers.ravel()[places], _basis(used, numbers, count, by)
        del numbers
    sums, means = sums_of(decoded.values, decoded.channels, places, channels), torch.from_numpy(decoded.means)
    del decoded, used, places, numpys
    gradient = grad_output.new_empty(outputs, channels) if total is None else total.tensor().flatten(1)
    write = Tensor.copy_ if total is None else Tensor.add_
    for place, part in zip(torch.split(gradient, at_once), torch.split(grad_output, at_once, dim=3), strict=True):
        coefficients = adjoint(part, by).flatten(1, 2) if basis is None else torch.bmm(basis, part.flatten(1, 2))
        write(place, _products(sums, means, coefficients).T)
        del coefficients
    return gradient


def _basis(
    used: Int[np.ndarray, "batch positions"], numbers: Int[np.ndarray, "batch positions"], count: int, by: Frequencies
) -> Float[Tensor, "batch count positions"]:
    """Return what the inverse transform makes of the used frequencies of each example, zeros in the place of the others."""
    examples, frequencies = used.nonzero()
    basis = torch.zeros(len(used) * count, used.shape[1])
    basis[torch.from_numpy(numbers[examples, frequencies])] = images_of(frequencies, by)
    return basis.view(len(used), count, -1)


def _products(
    sums: Sums, means: Float[Tensor, " channels"], coefficients: Float[Tensor, "batch frequencies outputs"]
) -> Float[Tensor, "channels outputs"]:
    """Return the products of the sparse coefficients and others, summed over examples and frequencies."""
    products = sums.of(coefficients.reshape(-1, coefficients.shape[-1]))
    return products.addr_(means, coefficients[:, 0].sum(0))
