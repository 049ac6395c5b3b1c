"""Numbers in few bits: codes packed into bytes, and groups of values as codes with a scale."""

from math import ceil, lcm
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from torch import Tensor

SCALE_TYPE = torch.bfloat16
"""Float32's range in two bytes. Codes are computed with the rounded scales, so that rounding them costs nothing."""
SCALE_ROUNDING = torch.finfo(SCALE_TYPE).eps

CONVERTED = 2**18
"""Elements that are converted at a time."""
CONVERTED_OF_ONE = 2**14
"""Of one example, whose step is to have a low peak."""

WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16, 8: torch.uint8}
"""Integers of as many bytes as there are codes in one, by the codes' bits."""

TABLES = {bits: (np.arange(256)[:, None] >> np.arange(0, 8, bits) & 2**bits - 1).astype(np.uint8).ravel() for bits in WORDS}
"""The codes in each byte, byte after byte, by the codes' bits."""


def pack_codes(codes: UInt8[Tensor, "*shape"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Return codes below 2^bits side by side, the first in a byte's lowest bits, the last byte padded with zeros."""
    per_byte = 8 // bits
    flat = codes.flatten()
    if len(flat) % per_byte or flat.storage_offset() % per_byte:
        flat = F.pad(flat, (0, -len(flat) % per_byte))
    if bits == 8:
        return flat.clone()
    # As many codes as fill a byte are one integer: the product has each of them at its place in the highest byte.
    shifts = sum(1 << (8 * (per_byte - 1) - (8 - bits) * place) for place in range(per_byte))
    return (flat.view(WORDS[bits]) * shifts).bitwise_right_shift_(8 * (per_byte - 1)).to(torch.uint8)


def unpack_codes(packed: UInt8[Tensor, " bytes"], bits: int, count: int) -> UInt8[Tensor, " count"]:
    """Return the first ``count`` codes behind ``pack_codes``."""
    if bits == 8:
        return packed[:count]
    table = torch.from_numpy(TABLES[bits]).to(packed.device).view(WORDS[bits])
    return table.index_select(0, packed.int()).view(torch.uint8)[:count]


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many packed codes."""
    return ceil(count * bits / 8)


def packed_elements(tensor: Tensor, bits: int) -> int:
    """Return how many elements a tensor of a ``Quantized`` stands for; its packed codes are uint8."""
    return tensor.numel() * (8 // bits if tensor.dtype is torch.uint8 else 1)


class Quantized(NamedTuple):
    """Values as packed codes; each group of neighbours has its least value and the step between two codes."""

    packed: UInt8[Tensor, " bytes"]
    lows: Shaped[Tensor, " groups"]
    steps: Shaped[Tensor, " groups"]


def quantize(x: Tensor, bits: int, group: int, generator: torch.Generator | None = None) -> Quantized:
    """Return x in ``bits`` bits an element, in groups of neighbours in row-major order.

    With a generator values are rounded up or down at random, so that the mean is right; without, to the nearest.
    A NaN or an infinity makes its whole group NaN when it is read back.
    """
    parts = [_quantize(part, bits, group, generator) for part in _parts(x, group)]
    return parts[0] if len(parts) == 1 else Quantized(*(torch.cat(same) for same in zip(*parts, strict=True)))


def _parts(x: Tensor, group: int) -> tuple[Tensor, ...]:
    """Return views of some examples, or of some channels of one: whole groups, whole bytes, no copy of a large tensor."""
    x, most = (x[0], CONVERTED_OF_ONE) if x.dim() > 1 and len(x) == 1 else (x, CONVERTED)
    elements = max(1, x.numel() // max(1, len(x)))
    step = lcm(elements, group, 8) // elements
    return torch.split(x, step * max(1, most // (step * elements)))


def _quantize(x: Tensor, bits: int, group: int, generator: torch.Generator | None) -> Quantized:
    rows, most = _rows(x.float().flatten(), group), 2**bits - 1
    lows = torch.cat([-_rounded_up(-row.amin(1)) for row in rows])
    places = torch.split(lows, [len(row) for row in rows])
    widths = [row.amax(1) - low.float() for row, low in zip(rows, places, strict=True)]
    steps = _rounded_up(torch.cat(widths) / most)
    scaled = x.new_empty((len(lows), rows[0].shape[1]), dtype=torch.float32)
    for row, low, place in zip(rows, places, torch.split(scaled, [len(row) for row in rows]), strict=True):
        torch.sub(row, low.float()[:, None], out=place)
    scaled.div_(steps.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None])
    scaled += 0.5
    if generator is not None:
        scaled.add_(_noise(scaled.shape, generator), alpha=2**-16)
    codes = scaled.floor_().clamp_(0, most).to(torch.uint8).flatten()[: x.numel()]
    return Quantized(pack_codes(codes, bits), lows, steps)


def _noise(shape: torch.Size, generator: torch.Generator) -> Shaped[Tensor, "*shape"]:
    """Return random 16-bit integers: four times as fast to draw as numbers with more digits than a code has places for."""
    words = torch.empty(ceil(shape.numel() / 4), dtype=torch.int64, device=generator.device)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[: shape.numel()].view(shape)


def dequantize(quantized: Quantized, bits: int, group: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the values behind ``quantize``, in the given shape and type."""
    values = torch.empty(shape, dtype=dtype, device=quantized.packed.device)
    places = _parts(values, group)
    count = places[0].numel()
    sizes = (ceil(count * bits / 8), ceil(count / group), ceil(count / group))
    stored = [torch.split(part, max(1, size)) for part, size in zip(quantized, sizes, strict=True)]
    for place, packed, lows, steps in zip(places, *stored, strict=True):
        codes, flat = unpack_codes(packed, bits, place.numel()), place.view(-1)
        width = min(group, len(flat))
        whole = len(flat) // max(1, width)
        # The last group may have fewer elements.
        for part, groups in ((slice(whole * width), slice(whole)), (slice(whole * width, None), slice(whole, None))):
            if count := len(lows[groups]):
                _write(flat[part].view(count, -1), codes[part], lows[groups], steps[groups])
    return values


def _write(rows: Tensor, codes: Tensor, lows: Tensor, steps: Tensor) -> None:
    """Write the values behind the codes of some groups, a row each."""
    numbers = rows if rows.dtype is torch.float32 else torch.empty_like(rows, dtype=torch.float32)
    numbers.copy_(codes.view(rows.shape)).mul_(steps.float()[:, None]).add_(lows.float()[:, None])
    if numbers is not rows:
        rows.copy_(numbers)


def dequantize_some(
    quantized: Quantized, bits: int, group: int, elements: range, count: int, dtype: torch.dtype
) -> Shaped[Tensor, " elements"]:
    """Return some consecutive elements, in row-major order, of the ``count`` values behind ``quantize``.

    Only where the groups are whole bytes.
    """
    first, last = elements.start // group, ceil(elements.stop / group)
    start, stop = first * group, min(last * group, count)
    packed = quantized.packed[start * bits // 8 : ceil(stop * bits / 8)]
    lows, steps = quantized.lows[first:last], quantized.steps[first:last]
    if (stop - start) % group:
        values = dequantize(Quantized(packed, lows, steps), bits, group, torch.Size([1, stop - start]), dtype)[0]
    else:
        rows = unpack_codes(packed, bits, stop - start).view(-1, group).float()
        values = rows.mul_(steps.float()[:, None]).add_(lows.float()[:, None]).flatten().to(dtype)
    return values[elements.start - start : elements.stop - start]


def quantized_bytes(count: int, bits: int, group: int) -> int:
    """Return the bytes of so many quantized values, scales included."""
    return packed_bytes(count, bits) + 2 * SCALE_TYPE.itemsize * ceil(count / group)


def _rounded_up(x: Tensor) -> Tensor:
    """Return x in the scales' type, never less than it was: a range must take in all its values."""
    rounded = x.to(SCALE_TYPE)
    return torch.where(rounded < x, (x + SCALE_ROUNDING * x.abs()).to(SCALE_TYPE), rounded)


def _rows(flat: Tensor, group: int) -> list[Tensor]:
    """Return the elements in rows of one group: whole ones, a view, and a last one, filled with its own last element."""
    group = min(group, len(flat))
    whole = len(flat) - len(flat) % group
    if whole == len(flat):
        return [flat.view(-1, group)]
    last = torch.cat([flat[whole:], flat[-1:].expand(whole + group - len(flat))])
    return [flat[:whole].view(-1, group), last[None]]
