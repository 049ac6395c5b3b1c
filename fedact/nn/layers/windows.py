"""Windows of maps whose channels come last, and which tokens see each other in shifted ones (Swin)."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

FAR = -100.0
"""What is added to the scores of tokens that were not neighbours before the shift, as in torchvision."""


def to_windows(x: Tensor, window: tuple[int, int] | None) -> Float[Tensor, "sequences tokens channels"]:
    """Return the windows of (examples, rows, columns, channels) as sequences, example by example."""
    if window is None:
        return x
    rows, columns = (size // side for size, side in zip(x.shape[1:3], window, strict=True))
    cut = x.reshape(len(x), rows, window[0], columns, window[1], x.shape[-1])
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, prod(window), x.shape[-1])


def from_windows(sequences: Tensor, like: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Return windows put together to the rows and columns of another tensor; the inverse of ``to_windows``."""
    if window is None:
        return sequences
    rows, columns = (size // side for size, side in zip(like.shape[1:3], window, strict=True))
    cut = sequences.reshape(len(like), rows, columns, *window, sequences.shape[-1])
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(*like.shape[:3], sequences.shape[-1])


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: list[int], like: Tensor) -> Tensor:
    """Return what is added to the scores of a shifted map's windows, (windows, 1, tokens, tokens): they have parts apart."""
    areas = []
    for whole, side, by in zip(size, window, shift, strict=True):
        places = torch.arange(whole, device=like.device)
        # Rows that were shifted around are an area of their own; without a shift, so is the last window.
        areas.append((places >= whole - side).long() + (places >= (whole - by if by else 0)).long())
    area = (areas[0][:, None] * 3 + areas[1])[None, :, :, None].float()
    tokens = to_windows(area, window).squeeze(-1)
    apart = tokens[:, None, :, None] != tokens[:, None, None, :]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, FAR)
