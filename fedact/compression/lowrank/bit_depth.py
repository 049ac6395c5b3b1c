"""How many bits an element of a stored core or factor takes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from fedact.compression.method import owned
from fedact.compression.packing import (
    CONVERTED,
    Quantized,
    dequantize,
    packed_bytes,
    packed_elements,
    quantize,
    quantized_bytes,
)

GROUP = 64
"""Neighbours in a core or a factor that share a scale, with 8 or 4 bits."""
CORE_TYPES = {torch.float16: torch.bfloat16}
"""A core's largest element is near the tensor's norm, which is out of float16's range long before its elements are."""


class BitDepth(NamedTuple):
    """Stores tensors in 32 bits an element (as they are), or in 8 or 4, rounded to the nearest code of their group."""

    bits: int = 32

    def pack(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return what is stored of the tensors: the codes, least values and steps of all, or the tensors themselves."""
        if self.bits == 32:
            return tuple(tensors)
        if sum(tensor.numel() for tensor in tensors) > CONVERTED:
            parts = [quantize(tensor, self.bits, GROUP) for tensor in tensors]
            return tuple(torch.cat(same) for same in zip(*parts, strict=True))
        # All at once: each filled up to whole groups with its last element, whose codes are dropped.
        pieces = [tensor.flatten() for tensor in tensors]
        counts, rows = _counts_and_rows(map(len, pieces))
        filled = [part for piece in pieces for part in (piece, piece[-1:].expand(-len(piece) % GROUP))]
        packed, lows, steps = quantize(torch.cat(filled).view(-1, GROUP), self.bits, GROUP)
        row = packed_bytes(GROUP, self.bits)
        codes = [packed[start * row :][: packed_bytes(count, self.bits)] for count, start in zip(counts, rows, strict=False)]
        return torch.cat(codes), lows, steps

    def unpack(self, stored: Sequence[Tensor], shapes: Iterable[torch.Size], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return tensors of these shapes from what ``pack`` stored; in this type, or in their own where they are whole."""
        if self.bits == 32:
            return tuple(stored)
        shapes, (packed, lows, steps) = list(shapes), stored
        counts, rows = _counts_and_rows(shape.numel() for shape in shapes)
        sizes = [packed_bytes(count, self.bits) for count in counts]
        pieces = torch.split(packed, sizes)
        if sum(counts) > CONVERTED:
            scales = [(lows[start:end], steps[start:end]) for start, end in pairwise(rows)]
            each = zip(pieces, scales, shapes, strict=True)
            return tuple(dequantize(Quantized(p, *scale), self.bits, GROUP, shape, dtype) for p, scale, shape in each)
        row, zeros = packed_bytes(GROUP, self.bits), packed.new_zeros(GROUP)
        filled = torch.cat([part for piece in pieces for part in (piece, zeros[: -len(piece) % row])])
        whole = torch.Size((rows[-1], GROUP))
        values = dequantize(Quantized(filled, lows, steps), self.bits, GROUP, whole, dtype).view(-1)
        places = zip(rows, counts, shapes, strict=False)
        return tuple(values[start * GROUP :][:count].view(shape) for start, count, shape in places)

    def bytes(self, elements: int, item_bytes: int) -> int:
        """Return the bytes of a tensor with so many elements, of ``item_bytes`` each before packing."""
        return elements * item_bytes if self.bits == 32 else quantized_bytes(elements, self.bits, GROUP)

    def elements(self, tensor: Tensor) -> int:
        """Return how many elements a stored tensor stands for."""
        return packed_elements(tensor, self.bits)


def signed(core: Tensor, factors: Mapping[int, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """Return core and factors with the largest element of every column above zero.

    The codes of few bits then do not depend on how the vectors were computed.
    """
    found = {}
    for mode, factor in factors.items():
        signs = factor.gather(0, factor.abs().argmax(0, keepdim=True)).sign()
        found[mode] = factor * signs
        core = core * signs.view([-1 if dimension == mode else 1 for dimension in range(core.dim())])
    return core, found


def _counts_and_rows(counts: Iterable[int]) -> tuple[list[int], list[int]]:
    """Return the numbers of elements, and the groups before each tensor and before the end."""
    listed = list(counts)
    return listed, [0, *accumulate(ceil(count / GROUP) for count in listed)]


def in_own_storage(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in a type, in a storage that holds nothing else."""
    return owned((x if x.dtype is dtype else x.to(dtype)).contiguous())
