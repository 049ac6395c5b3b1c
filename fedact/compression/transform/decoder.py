"""From bytes to images."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import nonzeros, read
from fedact.compression.transform.coefficients import in_ledger
from fedact.compression.transform.cosine import Frequencies, chunks, inverse

DECODED_BYTES = 56
"""Of numpy's memory at most, for a coefficient that is read."""


def decode(
    packed: UInt8[Tensor, " bytes"], shape: tuple[int, int, int, int], by: Frequencies
) -> Float[Tensor, "batch height width channels"]:
    """Return the images of a shape (batch, height, width, channels) behind ``encode``."""
    stored, images, channels = packed.cpu().numpy(), torch.zeros(shape), np.int32(shape[-1])
    numpys = in_ledger(DECODED_BYTES * nonzeros(stored))
    decoded = read(stored, shape[0], shape[-1], by.rings)
    images.view(-1).numpy()[decoded.rows * channels + decoded.channels] = decoded.values
    images[:, 0, 0] += torch.from_numpy(decoded.means)
    del decoded, numpys
    images = images.to(packed.device)
    for chunk in chunks(images) if by.back else ():
        # One matrix alone cannot write where it reads.
        _ = inverse(chunk, by, out=chunk) if len(by.back) == 2 else chunk.copy_(inverse(chunk, by))
    return images
