"""Mean cross-entropy of all pixels, from scores at the decoder's resolution: in plain PyTorch, and with less memory."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fedact.data import VOID
from fedact.nn.layers.function import check_first_derivative

Scores = Float[Tensor, "examples classes height width"]
Masks = Int[Tensor, "examples rows columns"]

PIXELS_AT_ONCE = 2**12


def scaled_up(scores: Scores, size: tuple[int, ...]) -> Float[Tensor, "examples classes rows columns"]:
    """Return the scores bilinearly interpolated to a size (rows, columns)."""
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


class PixelLoss:
    """The mean cross-entropy of all pixels; void ones add 0.

    The sum is divided by the number of all pixels, void ones included, so that micro-batches add up to the same gradient.
    """

    def __call__(self, scores: Scores, masks: Masks) -> Float[Tensor, ""]:
        """Return the loss from plain PyTorch, which saves a number for every pixel and class."""
        every = scaled_up(scores, masks.shape[1:])
        return F.cross_entropy(every, masks, ignore_index=VOID, reduction="sum") / masks.numel()

    def lean(self, scores: Scores, masks: Masks) -> Float[Tensor, ""]:
        """Return the same loss, which saves its gradient alone, at the scores' own resolution.

        The gradient is computed in the forward pass, in bands of a few rows: interpolation is a product with two small
        matrices, one for rows and one for columns.
        """
        return _SavesGradient.apply(scores, masks)  # type: ignore[no-any-return]


pixel_loss = PixelLoss()


class _SavesGradient(torch.autograd.Function):
    """The loss, saving its gradient in place of its inputs."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, masks: Tensor) -> Tensor:
        # As cross_entropy does under autocast: a sum over so many pixels is beyond a half type's range and digits.
        with torch.autocast(scores.device.type, enabled=False):
            total, gradient = _summed(scores.to(torch.promote_types(scores.dtype, torch.float32)), masks)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient.div_(masks.numel()))
        return total / masks.numel()

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None]:
        check_first_derivative("the pixel loss that saves its gradient", False)
        (gradient,) = ctx.saved_tensors
        return gradient * output_gradient, None


def _summed(scores: Scores, masks: Masks) -> tuple[Float[Tensor, ""], Scores]:
    """Return the cross-entropy summed over all pixels, and its gradient with respect to the scores."""
    total, gradient = scores.new_zeros(()), torch.zeros_like(scores)
    down, across = (_interpolation(scores, *sizes) for sizes in zip(scores.shape[2:], masks.shape[1:], strict=True))
    for example, rows in _bands(masks):
        value, pixel_gradient = _loss_and_gradient(down[rows] @ scores[example] @ across.T, masks[example, rows])
        total += value
        gradient[example] += down[rows].T @ pixel_gradient @ across
    return total, gradient


def _interpolation(scores: Tensor, length: int, scaled: int) -> Float[Tensor, "scaled length"]:
    """Return the matrix that interpolates one side from ``length`` to ``scaled`` as ``scaled_up`` does."""
    eye = torch.eye(length, dtype=scores.dtype, device=scores.device)
    return F.interpolate(eye[None], size=scaled, mode="linear", align_corners=False)[0].T


def _bands(masks: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield (example, rows) for bands of at most ``PIXELS_AT_ONCE`` pixels, or one row."""
    examples, rows, columns = masks.shape
    height = max(1, PIXELS_AT_ONCE // columns)
    for example in range(examples):
        for start in range(0, rows, height):
            yield example, slice(start, start + height)


def _loss_and_gradient(
    scores: Float[Tensor, "classes rows columns"], mask: Int[Tensor, "rows columns"]
) -> tuple[Tensor, Float[Tensor, "classes rows columns"]]:
    """Return the cross-entropy summed over a band's pixels, and its gradient with respect to their scores."""
    counts = mask != VOID
    classes = torch.where(counts, mask, 0)[None]
    logarithms = scores.log_softmax(0)
    value = -(logarithms.gather(0, classes)[0] * counts).sum()
    gradient = logarithms.exp_()
    gradient.scatter_add_(0, classes, gradient.new_full((), -1.0).expand(classes.shape))
    return value, gradient.mul_(counts)
