"""How many bits an element of a stored core or factor takes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedact.compression.packing import Quantized, dequantize, packed_elements, quantize, quantized_bytes

GROUP = 64
"""Neighbours in a core or a factor that share a scale, with 8 or 4 bits."""


class BitDepth(NamedTuple):
    """Stores tensors in 32 bits an element (as they are), or in 8 or 4, rounded to the nearest code of their group."""

    bits: int = 32

    def pack(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what is stored of the tensors: codes, least values and steps of each, or the tensors themselves."""
        if self.bits == 32:
            return tuple(tensors)
        return tuple(part for tensor in tensors for part in quantize(tensor, self.bits, GROUP))

    def unpack(self, stored: Sequence[Tensor], shapes: Iterable[torch.Size], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return tensors of these shapes from what ``pack`` stored; in this type, or in their own where they are whole."""
        if self.bits == 32:
            return tuple(stored)
        threes = (Quantized(*stored[place : place + 3]) for place in range(0, len(stored), 3))
        return tuple(dequantize(three, self.bits, GROUP, shape, dtype) for three, shape in zip(threes, shapes, strict=True))

    def bytes(self, elements: int, item_bytes: int) -> int:
        """Return the bytes of a tensor with so many elements, of ``item_bytes`` each before packing."""
        return elements * item_bytes if self.bits == 32 else quantized_bytes(elements, self.bits, GROUP)

    def elements(self, tensor: Tensor) -> int:
        """Return how many elements a stored tensor stands for."""
        return packed_elements(tensor, self.bits)
