"""``division``: means of blocks in 16 bits, and what is left in few, rounded at random."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedact.compression.method import NO_STATE, Compressed, Count, Method, State, Sweep, Traits, shape_of
from fedact.compression.noise import Noisy, next_seed
from fedact.compression.packing import Quantized, dequantize, packed_elements, quantize, quantized_bytes
from fedact.config.spec import settings

MEAN_TYPE = torch.bfloat16
"""Of the means: what their rounding leaves is in the remainder, so that it costs no accuracy."""
LEAST_GROUP = 32
"""Elements that share a scale, at least: maps of fewer positions share one with their neighbours."""
PAPER_BITS = 2


@settings("division")
class Division(Noisy):
    """Low frequencies in 16 bits, high ones in few: means of square blocks, and the remainder rounded at random.

    Stores every map's means over blocks of positions, 2 bytes each, and the remainder x - mean in ``bits`` bits an element,
    with its least value and its step for every map, 2 bytes each; maps of fewer than 32 positions share these. Rounding is
    stochastic, so that the mean of the reconstruction is x. Blocks are ``block`` x ``block`` positions of a picture and
    ``block`` positions of a series or tokens; a vector has no positions, and is rounded alone. State: the seed of the next
    step's noise, 8 bytes.
    DIVISION: Wang et al., ICML 2023, arXiv 2208.04187, section 4.

    block: side of a block, whole number from 1, default 8. bits: of an element of the remainder, 2, 4 or 8; a plan's budget
    chooses them, and where there is none they are the paper's 2.

    >>> from fedact.compression import METHODS
    >>> METHODS["division"](bits=2).predicted_bytes((16, 96, 14, 14))
    93696
    """

    traits: ClassVar[Traits] = Traits(
        "DIVISION: Wang et al., ICML 2023, arXiv 2208.04187, section 4",
        published="bits=2",
        sweep=Sweep("bits", (2, 4, 8)),
        per_example=True,
        tensor_seconds=6e-4,
        element_seconds=1.2e-8,
        gentlest="block=1,bits=8",
        rounding=1e-3,
    )

    block: Count = 8
    bits: Literal[8, 4, 2] | None = None

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        _, generator = self.noise(x, state)
        remainder, means = x, list[Tensor]()
        if x.dim() > 2:
            means = [block_means(x, self.block).to(MEAN_TYPE)]
            remainder = spread(means[0].float(), self.block, x.shape)
            torch.sub(x, remainder, out=remainder)
        quantized = quantize(remainder, self._bits, group_of(x.shape), generator)
        return Compressed((*quantized, *means), (x.shape, x.dtype), next_seed(generator))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        packed, lows, steps, *means = compressed.tensors
        shape, dtype = compressed.metadata
        wide = torch.float32 if means else dtype
        values = dequantize(Quantized(packed, lows, steps), self._bits, group_of(shape), shape, wide)
        for each in means:
            values += spread(each.float(), self.block, shape)
        return values.to(dtype)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape = shape_of(x)
        means = prod(_means_shape(shape, self.block)) if len(shape) > 2 else 0
        return quantized_bytes(prod(shape), self._bits, group_of(shape)) + MEAN_TYPE.itemsize * means

    def stored_elements(self, tensor: Tensor) -> int:
        return packed_elements(tensor, self._bits)

    def levels(self, x: Tensor, spectra: Any = None) -> dict[float, Method]:
        """Return the method with bits fixed."""
        if self.bits is not None:
            return {1.0: self}
        return {float(bits): replace(self, bits=bits) for bits in (8, 4, 2)}

    @property
    def has_free_settings(self) -> bool:
        return self.bits is None

    @property
    def _bits(self) -> int:
        return self.bits or PAPER_BITS


def group_of(shape: Sequence[int]) -> int:
    """Return how many neighbours of a tensor share a scale: one channel's map, or a row of a tensor without positions."""
    size = prod(shape[2:]) if len(shape) > 2 else shape[-1]
    return max(1, size * ceil(LEAST_GROUP / max(1, size)))


def block_means(x: Tensor, block: int) -> Tensor:
    """Return the mean of every block of positions, in float32; those at the last edges are of fewer positions."""
    for dimension in _position_dimensions(x.shape):
        # In parts, for a block at the edge is smaller.
        parts = torch.split(x, block, dimension)
        x = torch.cat([part.mean(dimension, keepdim=True, dtype=torch.float32) for part in parts], dimension)
    return x


def spread(means: Tensor, block: int, shape: Sequence[int]) -> Tensor:
    """Return a new tensor of the shape in which every position has its block's mean."""
    for dimension in _position_dimensions(shape):
        means = means.repeat_interleave(block, dimension).narrow(dimension, 0, shape[dimension])
    return means.contiguous()


def _position_dimensions(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions along which a tensor has positions: neither examples nor channels."""
    return tuple(range(2, len(shape)))


def _means_shape(shape: Sequence[int], block: int) -> list[int]:
    positions = _position_dimensions(shape)
    return [ceil(size / block) if dimension in positions else size for dimension, size in enumerate(shape)]
