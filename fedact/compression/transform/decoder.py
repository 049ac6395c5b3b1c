"""From bytes to images."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fedact.compression.transform.bitstream import Decoded, read
from fedact.compression.transform.cosine import Frequencies, chunks, inverse

Shape = tuple[int, int, int, int]


def decode(packed: UInt8[Tensor, " bytes"], shape: Shape, by: Frequencies) -> Float[Tensor, "batch height width channels"]:
    """Return the images of a shape (batch, height, width, channels) behind ``encode``."""
    images = coefficients(read(packed.cpu().numpy(), shape[0], shape[-1], by.rings), shape)
    return images_behind(images.to(packed.device), by)


def coefficients(decoded: Decoded, shape: Shape) -> Float[Tensor, "batch height width channels"]:
    """Return all coefficients."""
    images, channels = torch.zeros(shape), np.int32(shape[-1])
    images.view(-1).numpy()[decoded.rows * channels + decoded.channels] = decoded.values
    images[:, 0, 0] += torch.from_numpy(decoded.means)
    return images


def images_behind(
    images: Float[Tensor, "batch height width channels"], by: Frequencies
) -> Float[Tensor, "batch height width channels"]:
    """Return the images behind coefficients, in their memory."""
    for chunk in chunks(images) if by.back else ():
        # One matrix alone cannot write where it reads.
        _ = inverse(chunk, by, out=chunk) if len(by.back) == 2 else chunk.copy_(inverse(chunk, by))
    return images
