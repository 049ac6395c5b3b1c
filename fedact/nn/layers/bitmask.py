"""Masks of one bit an element, packed and applied in the order of memory, in chunks that fit a CPU cache."""

from collections.abc import Callable, Sequence
from math import ceil

import torch
from jaxtyping import UInt8
from torch import Tensor

from fedact.compression.packing import pack_codes, unpack_codes

CHUNK = 2**18
"""Elements at a time: their intermediate values stay in the cache, those of a whole tensor need new memory pages."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def flattened(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return x's elements with its dimensions in this order: a view where that is how they lie in memory."""
    return x.permute(tuple(order)).reshape(-1)


def restored(flat: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Return the tensor that ``flattened`` flattened, as a view of ``flat``."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([shape[dimension] for dimension in order]).permute(back)


def pack_mask(x: Tensor, order: Sequence[int], mask: Callable[[Tensor], Tensor]) -> UInt8[Tensor, " bytes"]:
    """Return the elementwise ``mask`` of x, 8 elements a byte, with the dimensions in this order."""
    flat = flattened(x, order)
    if len(flat) <= CHUNK:
        return pack_codes(mask(flat).view(torch.uint8), bits=1)
    packed = torch.empty(ceil(len(flat) / 8), dtype=torch.uint8, device=x.device)
    for part, place in zip(torch.split(flat, CHUNK), torch.split(packed, CHUNK // 8), strict=True):
        place.copy_(pack_codes(mask(part).view(torch.uint8), bits=1))
    return packed


def apply_mask(x: Tensor, packed: UInt8[Tensor, " bytes"], order: Sequence[int]) -> Tensor:
    """Return a copy of x with zeros where the mask of ``pack_mask`` is not set, its memory in this order."""
    flat = flattened(x, order)
    # As integers, bits times 1 are the same bits, and times 0 are 0, even for an infinity.
    integers = INTEGERS[x.element_size()]
    if len(flat) <= CHUNK:
        masked = flat.view(integers) * unpack_codes(packed, 1, len(flat)).view(torch.bool)
        return restored(masked.view(x.dtype), x.shape, order)
    result = torch.empty_like(flat)
    parts = (torch.split(tensor.view(integers), CHUNK) for tensor in (flat, result))
    for part, place, mask in zip(*parts, torch.split(packed, CHUNK // 8), strict=True):
        torch.mul(part, unpack_codes(mask, 1, len(part)).view(torch.bool), out=place)
    return restored(result, x.shape, order)
