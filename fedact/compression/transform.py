"""``transform``: cosine transforms in space, a step that spends bits where the variance is, and an entropy coder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod, sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedact.compression.coefficients import candidates, classes, fitting, levels, overhead_bytes, read, sort, write
from fedact.compression.frequencies import Frequencies, as_images, chunks, frequencies, from_images, images_shape, inverse
from fedact.compression.frequencies import transform as cosine_transform
from fedact.compression.method import NO_STATE, Compressed, Method, State, check_derive, shape_of
from fedact.errors import ConfigError

LEVELS = (8.0, 4.0, 2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03)
"""Bits an element between which a budget chooses."""


class Layout(NamedTuple):
    """The tensor's shape and type."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Transform(Method):
    """Transform coding: weighted cosine coefficients, one uniform step, runs of zeros in Rice's code; always as many bytes.

    bits: of an element on the average, besides 92 bytes, 5/8 of a byte a channel and up to 32 bytes for the frequencies.
    The step is the smallest whose code fits. A uniform step with an entropy coder spends bits as reverse water-filling asks;
    coefficients are weighted by how much the weight gradient's error depends on their frequency.
    derive: an input that is at most so many convolutions behind another kept one, no smaller than it, is not kept but made
    again from it in the backward pass, with the ReLUs' masks; 0 keeps every input.
    """

    source: ClassVar[str] = "transform coding: Goyal, IEEE Signal Processing Magazine 18(5), 2001; Golomb 1966, Rice 1979"

    bits: float = 0.5
    derive: int = 2

    def __post_init__(self) -> None:
        check_derive("transform", self.derive)
        if not 0 < self.bits <= 16:
            raise ConfigError(f"transform: bits is above 0 and at most 16, not {self.bits:g}")

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        images = as_images(x)
        batch, height, width, channels = images.shape
        total = self.predicted_bytes(x.shape)
        overhead = overhead_bytes(channels, _rings(height, width))
        by = frequencies(height, width, x.device)
        means = images.mean((0, 1, 2))
        if not means.isfinite().all():
            raise FloatingPointError("a tensor with a NaN or an infinity cannot be coded: training may have diverged")
        means *= sqrt(height * width)
        found = candidates(images, partial(_coefficients, means, by), list(chunks(images)), 8 * (total - overhead))
        channel_levels, ring_levels = levels(found, channels, by.rings)
        ordered = sort(found, classes(channel_levels, ring_levels, by.rings))
        chosen = fitting(ordered, means, found.least, total - overhead + ceil(channels / 8))
        return Compressed((write(chosen, channel_levels, ring_levels, total),), Layout(x.shape, x.dtype))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, dtype = compressed.about
        batch, height, width, channels = images_shape(shape)
        (packed,) = compressed.tensors
        by = frequencies(height, width, packed.device)
        found, means = read(packed, (batch, height * width), channels, by.rings)
        images = means.new_zeros(batch, height, width, channels)
        images.view(-1)[found.places] = found.values
        images[:, 0, 0] += means
        for chunk in chunks(images):
            chunk.copy_(inverse(chunk, by))
        return from_images(images, shape).to(dtype)

    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        shape = shape_of(kept)
        _, height, width, channels = images_shape(shape)
        return ceil(prod(shape) * self.bits / 8) + overhead_bytes(channels, _rings(height, width))

    def levels(self, x: Tensor) -> dict[float, Method]:
        return {1.0: self}


def _coefficients(means: Tensor, by: Frequencies, images: Tensor) -> Tensor:
    """Return the weighted coefficients of some images around the channels' means."""
    found = cosine_transform(images, by)
    # A map of one position is its own coefficient, and must stay as it is.
    found = found.clone() if found is images else found
    found[:, 0, 0] -= means
    return found


def _rings(height: int, width: int) -> int:
    return min(64, height * width)
