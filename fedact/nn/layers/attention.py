"""Attention that keeps no scores: queries, keys, values and scores are made again in the backward pass, in groups."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.method import Compressed
from fedact.nn.layers.compressed import save, saved
from fedact.nn.layers.function import apply, check_first_derivative, is_recorded, runs_plain, without_autocast
from fedact.nn.layers.windows import from_windows, to_windows

FEW = 2**13
"""Elements that a group of examples may take in any case: smaller groups take longer."""
SHARE = 8
"""A group's scores and gradients may be an eighth of the queries, keys and values of the whole batch."""
TINY = 1e-12
"""Shorter queries and keys have no direction, as in ``F.normalize``."""

Masks = Callable[[], Tensor | None]
"""Makes what is added to the scores, (windows or 1, heads or 1, tokens, tokens), or says by a bool which of them count."""


def no_mask() -> None:
    """Return nothing to add to the scores."""


@dataclass(frozen=True, eq=False)
class Attention:
    """What attention does with its queries, keys and values.

    heads: how many. masks: makes what is added to the scores, again in the backward pass. window: rows and columns of the
    windows that (examples, rows, columns, channels) are cut into, None for (examples, tokens, channels). scale: multiplies
    the cosines of queries and keys, (heads, 1, 1); None for dot products over the square root of a head's channels.
    """

    heads: int
    masks: Masks = no_mask
    window: tuple[int, int] | None = None
    scale: Tensor | None = None

    def mask(self, y: Tensor) -> Tensor | None:
        """Return what is added to the scores, in the type of queries and keys, or says which of them count."""
        mask = self.masks()
        return mask if mask is None or mask.dtype is torch.bool else mask.to(y.dtype)


class Source(NamedTuple):
    """Where queries, keys and values come from: x, as a method stores it, and the weight and bias that project it."""

    method: Any
    compressed: Compressed
    weight: Tensor
    bias: Tensor | None


class _Attention(torch.autograd.Function):
    """Attention over projected queries, keys and values y, whose ``source`` is saved; y itself where there is none."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, attention: Attention, source: Source | None) -> Tensor:
        ctx.attention, ctx.dtype, ctx.made_again = attention, y.dtype, source is not None
        method, compressed, *weights = source or (Exact(), Compressed((y,)), None, None)
        ctx.method = method
        save(ctx, method, compressed, *weights)
        ctx.keeps_graph = method.traits.keeps_input
        with without_autocast(y):
            return _attended(y, attention)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method, ctx.keeps_graph)
        compressed, (weight, bias) = saved(ctx)
        with without_autocast(grad_output):
            y = ctx.method.reconstruct(compressed)
            del compressed
            if ctx.made_again:
                y = F.linear(y.to(ctx.dtype), weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype))
            if torch.is_grad_enabled():
                return *torch.autograd.grad(differentiable(y, ctx.attention), y, grad_output, create_graph=True), None, None
            # What was made again is nobody else's.
            gradient = y if ctx.made_again else torch.empty_like(y)
            _write_gradient(gradient, y, grad_output, ctx.attention)
        return gradient, None, None


def attend(
    y: Float[Tensor, "batch ... projected"], attention: Attention, source: Source | None = None
) -> Float[Tensor, "batch ... channels"]:
    """Return the attention over y: queries, then keys, then values, each of them head by head, in the last dimension.

    source: what y is made again from in the backward pass; without it y is saved.
    """
    if runs_plain():
        return differentiable(y, attention)
    if is_recorded(y):
        return apply(_Attention, y, attention, source)  # type: ignore[no-any-return]
    with without_autocast(y):
        return _attended(y, attention)


def differentiable(y: Tensor, attention: Attention) -> Tensor:
    """Return the same from operations that autograd, its second derivatives and transforms follow."""
    q, k, v = _split(to_windows(y, attention.window), attention.heads)
    if attention.scale is not None:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scores = (q * _factor(q, attention)) @ k.transpose(-2, -1)
    mask = attention.mask(y)
    weights = _weights(scores, _repeated(mask, 0, len(q), len(q)))
    return from_windows(_joined(weights @ v), y, attention.window)


def _attended(y: Tensor, attention: Attention) -> Tensor:
    """Return the attention over y, group by group, recording nothing."""
    whole, mask = None, attention.mask(y)
    for group, part_mask in _groups(y, attention, mask):
        q, k, v = _split(to_windows(y[group], attention.window), attention.heads)
        if attention.scale is not None:
            q, k = F.normalize(q, dim=-1) * attention.scale, F.normalize(k, dim=-1)
        part = F.scaled_dot_product_attention(q, k, v, part_mask, scale=None if attention.scale is None else 1.0)
        part = from_windows(_joined(part), y[group], attention.window)
        if len(part) == len(y):
            return part
        whole = part.new_empty(len(y), *part.shape[1:]) if whole is None else whole
        whole[group] = part
    return y.new_empty(*y.shape[:-1], y.shape[-1] // 3) if whole is None else whole


def _write_gradient(gradient: Tensor, y: Tensor, grad_output: Tensor, attention: Attention) -> None:
    """Write the gradient of y into a tensor of its shape, y itself perhaps."""
    for group, mask in _groups(y, attention, attention.mask(y)):
        part = to_windows(y[group], attention.window)
        found = _gradient(part, to_windows(grad_output[group], attention.window), attention, mask)
        gradient[group] = from_windows(found.flatten(2), y[group], attention.window)


def _gradient(
    y: Tensor, grad_output: Tensor, attention: Attention, mask: Tensor | None
) -> Float[Tensor, "sequences tokens 3 heads channels"]:
    """Return the gradient of some sequences' queries, keys and values."""
    q, k, v = _split(y, attention.heads)
    grad = grad_output.view(*grad_output.shape[:2], attention.heads, -1).transpose(1, 2)
    factor, lengths = _factor(q, attention), None
    if attention.scale is not None:
        lengths = [each.norm(dim=-1, keepdim=True).clamp_min(TINY) for each in (q, k)]
        q, k = q / lengths[0], k / lengths[1]
    scaled = q * factor
    weights = _weights(scaled @ k.transpose(-2, -1), mask)
    found = torch.empty_like(y).view(*y.shape[:2], 3, attention.heads, -1)
    found[:, :, 2] = (weights.transpose(-2, -1) @ grad).transpose(1, 2)
    grad_weights = grad @ v.transpose(-2, -1)
    grad_weights -= (grad_weights * weights).sum(-1, keepdim=True)
    grad_scores = weights.mul_(grad_weights)
    del grad_weights
    grad_q, grad_k = (grad_scores @ k) * factor, grad_scores.transpose(-2, -1) @ scaled
    if lengths is not None:
        grad_q, grad_k = (
            (each - direction * (direction * each).sum(-1, keepdim=True) * (length > TINY)) / length
            for each, direction, length in zip((grad_q, grad_k), (q, k), lengths, strict=True)
        )
    found[:, :, 0], found[:, :, 1] = grad_q.transpose(1, 2), grad_k.transpose(1, 2)
    return found


def _weights(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax of scores with a mask; a token that sees no other one has weights of zero."""
    if mask is None:
        return torch.softmax(scores, -1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0), -1).masked_fill(blind, 0)


def _factor(q: Tensor, attention: Attention) -> float | Tensor:
    """Return what multiplies the scores."""
    return float(q.shape[-1] ** -0.5) if attention.scale is None else attention.scale


def _split(y: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (sequences, heads, tokens, channels), of (sequences, tokens, projected)."""
    q, k, v = y.reshape(*y.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _joined(heads: Tensor) -> Tensor:
    """Return (sequences, tokens, channels) of (sequences, heads, tokens, channels of a head)."""
    return heads.transpose(1, 2).flatten(2)


def _groups(y: Tensor, attention: Attention, mask: Tensor | None) -> Iterator[tuple[slice, Tensor | None]]:
    """Yield groups of examples that work with little memory, each with its mask."""
    examples = len(y)
    if not y.numel():
        return
    tokens = prod(y.shape[1:-1]) if attention.window is None else prod(attention.window)
    windows = prod(y.shape[1:-1]) // tokens
    each = 2 * windows * attention.heads * tokens**2 + 2 * y[0].numel()
    count = max(1, min(examples, max(FEW, y.numel() // SHARE) // each))
    if mask is not None and windows == 1 and 1 < len(mask) < examples:
        # The windows of an image come one after the other, and their masks are every image's.
        count = max(1, count // len(mask)) * len(mask)
    for start in range(0, examples, count):
        stop = min(start + count, examples)
        yield slice(start, stop), _repeated(mask, start * windows, stop * windows, examples * windows)


def _repeated(mask: Tensor | None, start: int, stop: int, sequences: int) -> Tensor | None:
    """Return the mask of some sequences: it is one for all, one for each, or the same for every image's windows."""
    if mask is None or len(mask) == 1:
        return mask
    return mask[start:stop] if len(mask) == sequences else mask.repeat((stop - start) // len(mask), 1, 1, 1)
