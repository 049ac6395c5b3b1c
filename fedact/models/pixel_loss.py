"""Cross-entropy of every pixel, of scores that a decoder leaves at its own resolution: plain, and holding far less."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedact.data import VOID

Scores = Float[Tensor, "examples classes height width"]
Masks = Int[Tensor, "examples rows columns"]

PIXELS_AT_ONCE = 2**14


def scaled_up(scores: Scores, size: tuple[int, ...]) -> Float[Tensor, "examples classes rows columns"]:
    """Return the scores of every pixel of masks of a size, bilinear."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


class PixelLoss:
    """The mean over all pixels of the cross-entropy; one that is void adds nothing.

    It is divided by the number of pixels, void ones included, so that parts of a batch add up to the same gradient.
    """

    def __call__(self, scores: Scores, masks: Masks) -> Float[Tensor, ""]:
        """Return the loss as plain PyTorch takes it: it holds a number for every pixel and class for the backward pass."""
        every = scaled_up(scores, masks.shape[1:])
        return F.cross_entropy(every, masks, ignore_index=VOID, reduction="sum") / masks.numel()

    def lean(self, scores: Scores, masks: Masks) -> Float[Tensor, ""]:
        """Return the same loss; what it holds is its gradient, at the scores' own resolution.

        It is made in the forward pass from bands of a few rows, for both the scores of every pixel and their gradient
        follow from the scores by two small matrices.
        """
        return _Lean.apply(scores, masks)  # type: ignore[no-any-return]


pixel_loss = PixelLoss()


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, masks: Tensor) -> Tensor:
        # As cross_entropy does under autocast: a sum over so many pixels is beyond a half type's range and digits.
        with torch.autocast(scores.device.type, enabled=False):
            total, gradient = _summed(scores.to(torch.promote_types(scores.dtype, torch.float32)), masks)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient.div_(masks.numel()))
        return total / masks.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * output_gradient, None


def _summed(scores: Scores, masks: Masks) -> tuple[Float[Tensor, ""], Scores]:
    """Return the sum over all pixels, and its gradient."""
    total, gradient = scores.new_zeros(()), torch.zeros_like(scores)
    down, across = (_weights(scores, *sizes) for sizes in zip(scores.shape[2:], masks.shape[1:], strict=True))
    for example, rows in _bands(masks):
        value, own = _loss_and_gradient(down[rows] @ scores[example] @ across.T, masks[example, rows])
        total += value
        gradient[example] += down[rows].T @ own @ across
    return total, gradient


def _weights(scores: Tensor, length: int, scaled: int) -> Float[Tensor, "scaled length"]:
    """Return the matrix that scales a side up as ``scaled_up`` does."""
    eye = torch.eye(length, dtype=scores.dtype, device=scores.device)
    return F.interpolate(eye[None], size=scaled, mode="linear", align_corners=False)[0].T


def _bands(masks: Tensor) -> Iterator[tuple[int, slice]]:
    examples, rows, columns = masks.shape
    each = max(1, PIXELS_AT_ONCE // columns)
    for example in range(examples):
        for start in range(0, rows, each):
            yield example, slice(start, start + each)


def _loss_and_gradient(
    scores: Float[Tensor, "classes rows columns"], mask: Int[Tensor, "rows columns"]
) -> tuple[Tensor, Float[Tensor, "classes rows columns"]]:
    """Return the sum over a band's pixels, and what it changes by with each score."""
    counts = mask != VOID
    own = torch.where(counts, mask, 0)[None]
    logarithms = scores.log_softmax(0)
    value = -(logarithms.gather(0, own)[0] * counts).sum()
    gradient = logarithms.exp_()
    gradient.scatter_add_(0, own, gradient.new_full((), -1.0).expand(own.shape))
    return value, gradient.mul_(counts)
