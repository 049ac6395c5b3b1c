"""Masks of one bit an element, packed and applied in the order of memory, in chunks that fit a CPU cache."""

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fedact.compression.packing import pack_codes

CHUNK, LEAST = 2**16, 2**14
"""The most elements at a time, and how many at least: their intermediate values stay in the cache, and count as alive."""
STRIDED = 2**19
"""Elements up to which a tensor in another order is read place by place in less time than it is transposed."""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
MASKS = {size: (-(np.arange(256)[:, None] >> np.arange(8) & 1)).astype(f"i{size}") for size in INTEGERS}
"""By the bytes of an element: the eight masks behind each byte, all bits set or none."""
ROWS = {size: masks.view(f"V{8 * size}").ravel() for size, masks in MASKS.items()}
"""The same, a byte's eight masks as one value, which numpy copies at once."""


def flattened(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return x's elements with its dimensions in this order: a view where that is how they lie in memory."""
    return x.permute(tuple(order)).reshape(-1)


def restored(flat: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Return the tensor that ``flattened`` flattened, as a view of ``flat``."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([shape[dimension] for dimension in order]).permute(back)


def pack_mask(x: Tensor, order: Sequence[int], mask: Callable[[Tensor], Tensor]) -> UInt8[Tensor, " bytes"]:
    """Return the elementwise ``mask`` of x, 8 elements a byte, with the dimensions in this order.

    mask: of a part of x; it may change the part, a view of x where the order is x's own in memory, after it has read it.
    """
    flat, count = flattened(x, order), x.numel()
    packed = torch.empty(ceil(count / 8), dtype=torch.uint8, device=x.device)
    chunk = _at_once(count)
    if chunk >= count:
        _pack(mask(flat), packed)
        return packed
    for part, place in zip(torch.split(flat, chunk), torch.split(packed, chunk // 8), strict=True):
        _pack(mask(part), place)
    return packed


def _at_once(count: int) -> int:
    """Return how many of so many elements to convert at a time, in whole bytes: about a quarter."""
    return min(CHUNK, max(LEAST, count // 4 // 8 * 8))


def _pack(mask: Bool[Tensor, " n"], packed: UInt8[Tensor, " bytes"]) -> None:
    if mask.is_cpu:
        # In the ledger for numpy's result.
        numpys = torch.empty_like(packed)
        packed.numpy()[:] = np.packbits(mask.numpy(), bitorder="little")
        del numpys
    else:
        packed.copy_(pack_codes(mask.view(torch.uint8), bits=1))


def apply_mask(
    x: Tensor, packed: UInt8[Tensor, " bytes"], order: Sequence[int], scale: Float[Tensor, " last"] | None = None
) -> Tensor:
    """Return a copy of x with zeros where the mask of ``pack_mask`` is not set, its memory in this order.

    scale: by the place in the last dimension of the order, what the copy is multiplied by; of ones where it is not given.
    """
    # As integers: a mask of no bits makes 0 of an infinity too.
    integers = INTEGERS[x.element_size()]
    source = x.view(integers).permute(tuple(order))
    flat, in_order = torch.empty(x.numel(), dtype=integers, device=x.device), source.is_contiguous()
    if in_order and len(flat) > CHUNK:
        # Whole rows of the last dimension, whole bytes.
        size = 8 * source.shape[-1]
        size *= max(1, CHUNK // size)
        parts = (torch.split(each, count) for each, count in ((source.view(-1), size), (packed, size // 8), (flat, size)))
        for part, masks, place in zip(*parts, strict=True):
            _unpack(masks, place)
            _scale(place.bitwise_and_(part), x.dtype, scale)
    else:
        _unpack(packed, flat)
        _and(flat.view(source.shape), source)
        _scale(flat, x.dtype, scale)
    return restored(flat.view(x.dtype), x.shape, order)


def _scale(masked: Tensor, dtype: torch.dtype, scale: Tensor | None) -> None:
    if scale is not None:
        masked.view(dtype).view(-1, len(scale)).mul_(scale)


def _and(result: Tensor, source: Tensor) -> None:
    """Clear the bits of the result that the source, in another order in memory, has not set."""
    if source.numel() <= STRIDED or source.dim() < 3 or not source.movedim(-1, 1).is_contiguous():
        result.bitwise_and_(source)
        return
    # An example at a time: PyTorch transposes a large matrix in blocks, but nothing else.
    transposed = torch.empty_like(result[0].flatten(0, -2))
    for masked, example in zip(result.flatten(1, -2), source.flatten(1, -2), strict=True):
        masked.bitwise_and_(transposed.copy_(example))


def _unpack(packed: UInt8[Tensor, " bytes"], masks: Tensor) -> None:
    """Write the masks of the elements, in integers of their size."""
    indices, size = packed.long(), masks.element_size()
    whole = len(masks) // 8
    if masks.is_cpu:
        # Views by numpy: of a small tensor they take a quarter of the time that torch's do.
        rows = masks.numpy()[: 8 * whole].view(ROWS[size].dtype)
        ROWS[size].take(indices.numpy()[:whole], out=rows, mode="clip")
    else:
        table = torch.from_numpy(MASKS[size]).to(masks.device)
        torch.index_select(table, 0, indices[:whole], out=masks[: 8 * whole].view(-1, 8))
    if rest := len(masks) - 8 * whole:
        masks[-rest:] = torch.from_numpy(MASKS[size][int(indices[-1]), :rest])
