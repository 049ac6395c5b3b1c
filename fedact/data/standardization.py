"""The mean and deviation of each channel, for series and for pictures of any range of floats, from the server's examples."""

from dataclasses import replace

import numpy as np

from fedact.data.examples import Images, Preprocessing
from fedact.data.kinds import COLOUR, in_blocks, is_picture


def standardized(preprocessing: Preprocessing, images: Images) -> Preprocessing:
    """Return the preprocessing with the mean and deviation of each channel of these images where they are for that.

    So are series, and pictures of floats that are not all between 0 and 1; other pictures keep what goes with the weights.
    images: the server's, so that every process, a resumed run and, by the server's message, a device has the same.
    """
    pictures = is_picture(images.shape)
    if pictures and (images.dtype.kind != "f" or _within_unit(images)):
        return preprocessing
    mean, std = channel_statistics(images, -1 if pictures else 1)
    times = COLOUR if images.shape[-1] != COLOUR and pictures else 1
    return replace(preprocessing, mean=tuple(mean.tolist()) * times, std=tuple(std.tolist()) * times)


def channel_statistics(images: Images, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each channel, float64 (channels,); 1 for the deviation of a constant.

    channel: the dimension that numbers them.
    """
    others = tuple(place for place in range(len(images.shape)) if place != channel % len(images.shape))
    count = np.prod([images.shape[place] for place in others])
    shape = [-1 if place not in others else 1 for place in range(len(images.shape))]
    mean = sum(block.sum(axis=others, dtype=np.float64) for block in in_blocks(images)) / count
    # From the mean, not from the sum of squares: a channel may have an offset far larger than its deviation.
    centered = (block - mean.reshape(shape) for block in in_blocks(images))
    std = np.sqrt(sum(np.square(block).sum(axis=others) for block in centered) / count)
    return mean, np.where(std > np.abs(mean) * np.finfo(np.float32).eps, std, 1.0)


def _within_unit(images: Images) -> bool:
    return all(bool(block.min() >= 0) and bool(block.max() <= 1) for block in in_blocks(images))
