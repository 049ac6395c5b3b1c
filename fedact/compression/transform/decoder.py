"""From bytes to images."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import Decoded, read
from fedact.compression.transform.cosine import FEW, Frequencies, at_once, chunks, images_of, inverse

Shape = tuple[int, int, int, int]


def decode(packed: UInt8[Tensor, " bytes"], shape: Shape, by: Frequencies) -> Float[Tensor, "batch height width channels"]:
    """Return the images of a shape (batch, height, width, channels) behind ``encode``."""
    return images_behind(read(packed.cpu().numpy(), shape[0], shape[-1], by.rings), shape, by).to(packed.device)


def images_behind(decoded: Decoded, shape: Shape, by: Frequencies) -> Float[Tensor, "batch height width channels"]:
    """Return the images of a shape behind coefficients that were read."""
    batch, height, width, channels = shape
    positions = height * width
    frequencies = decoded.rows % np.int32(positions)
    used = np.zeros(positions, dtype=np.int32)
    used[frequencies] = used[0] = 1
    (numbers,) = used.nonzero()
    # Where each by itself takes less time, and no more memory: its map, and its coefficients.
    alone = len(numbers) * (positions + batch * channels) <= at_once(shape) * positions * channels
    if not by.back or not alone or len(numbers) > FEW * (height + width):
        images = _scattered(decoded, decoded.rows, (batch, positions, channels)).view(shape)
        del decoded, frequencies
        for chunk in chunks(images) if by.back else ():
            # One matrix alone cannot write where it reads.
            _ = inverse(chunk, by, out=chunk) if len(by.back) == 2 else chunk.copy_(inverse(chunk, by))
        return images
    rows = decoded.rows // np.int32(positions)
    rows *= np.int32(len(numbers))
    rows += (used.cumsum(dtype=np.int32) - 1)[frequencies]
    coefficients = _scattered(decoded, rows, (batch, len(numbers), channels))
    del decoded, frequencies, rows
    basis = images_of(numbers, by).T
    return torch.bmm(basis.expand(batch, *basis.shape), coefficients).view(shape)


def _scattered(
    decoded: Decoded, rows: Int[np.ndarray, " n"], shape: tuple[int, int, int]
) -> Float[Tensor, "batch frequencies channels"]:
    """Return the coefficients as a matrix of these rows (example, frequency), with the means."""
    coefficients = torch.zeros(shape)
    coefficients.view(-1).numpy()[rows * np.int32(shape[-1]) + decoded.channels] = decoded.values
    coefficients[:, 0] += torch.from_numpy(decoded.means)
    return coefficients
