"""Numbers in few bits: codes packed into bytes, and groups of values as codes with a scale."""

from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from torch import Tensor

SCALE_TYPE = torch.bfloat16
"""Scales keep float32's range in two bytes; their rounding is undone, because codes are made with the rounded ones."""
SCALE_ROUNDING = torch.finfo(SCALE_TYPE).eps

WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16, 8: torch.uint8}
"""Integers of as many bytes as there are codes in one, by the codes' bits."""


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
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    every_byte = torch.arange(256, dtype=torch.uint8, device=packed.device)
    table: Tensor = ((every_byte[:, None] >> places) & (2**bits - 1)).view(WORDS[bits]).flatten()
    return table.index_select(0, packed.int()).view(torch.uint8)[:count]


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many packed codes."""
    return ceil(count * bits / 8)


def packed_elements(tensor: Tensor, bits: int) -> int:
    """Return how many elements a part of what ``quantize`` returns stands for: packed codes are its only bytes."""
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
    values, most = _grouped(x.float(), group), 2**bits - 1
    lows = -_rounded_up(-values.amin(1))
    steps = _rounded_up((values.amax(1) - lows.float()) / most)
    scaled = (values - lows.float()[:, None]) / steps.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    if generator is None:
        scaled += 0.5
    else:
        scaled += torch.rand(scaled.shape, generator=generator, device=x.device)
    codes = scaled.floor_().clamp_(0, most).to(torch.uint8).flatten()[: x.numel()]
    return Quantized(pack_codes(codes, bits), lows, steps)


def dequantize(quantized: Quantized, bits: int, group: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return the values behind ``quantize``, in the given shape and type."""
    codes = _grouped(unpack_codes(quantized.packed, bits, shape.numel()), group)
    values = codes * quantized.steps.float()[:, None] + quantized.lows.float()[:, None]
    return values.flatten()[: shape.numel()].view(shape).to(dtype)


def quantized_bytes(count: int, bits: int, group: int) -> int:
    """Return the bytes of so many quantized values, scales included."""
    return packed_bytes(count, bits) + 2 * SCALE_TYPE.itemsize * ceil(count / group)


def _rounded_up(x: Tensor) -> Tensor:
    """Return x in the scales' type, never less than it was: a range must take in all its values."""
    rounded = x.to(SCALE_TYPE)
    return torch.where(rounded < x, (x + SCALE_ROUNDING * x.abs()).to(SCALE_TYPE), rounded)


def _grouped(x: Tensor, group: int) -> Tensor:
    """Return the elements in rows of one group; the last row is filled with its own last element, which widens nothing."""
    flat = x.flatten()
    group = min(group, len(flat))
    missing = -len(flat) % group
    return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, group) if missing else flat.view(-1, group)
