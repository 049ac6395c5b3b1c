"""Random crops and flips of what clients train on; a mask goes with its image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Batches = Callable[[np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Augmented:
    """Batches whose images are cropped to a random square and flipped at random, each by itself.

    crop: pixels a side, None for whole images. random: what is drawn follows from it, batch after batch.
    """

    batches: Batches
    crop: int | None
    flip: bool
    random: np.random.Generator

    def __call__(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        x, y = self.batches(positions)
        pairs = [self._drawn(x[place], y[place]) for place in range(len(y))]
        return torch.stack([image for image, _ in pairs]), torch.stack([target for _, target in pairs])

    def _drawn(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        both = [image, target] if target.dim() else [image]
        if self.crop is not None:
            top, left = (int(self.random.integers(size - self.crop + 1)) for size in image.shape[-2:])
            both = [each[..., top : top + self.crop, left : left + self.crop] for each in both]
        if self.flip and self.random.random() < 0.5:
            both = [each.flip(-1) for each in both]
        return both[0], both[1] if target.dim() else target


def cropped_and_flipped(batches: Batches, crop: int | None, flip: bool, random: np.random.Generator) -> Batches:
    """Return the batches with their images cropped and flipped, as they are where neither is asked for."""
    return batches if crop is None and not flip else Augmented(batches, crop, flip, random)


def centred(x: Tensor, y: Tensor, crop: int | None) -> tuple[Tensor, Tensor]:
    """Return the middle squares of images, and of their masks, of so many pixels a side; whole ones for None."""
    if crop is None:
        return x, y
    top, left = ((size - crop) // 2 for size in x.shape[-2:])
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    return x[..., rows, columns].contiguous(), y[..., rows, columns].contiguous() if y.dim() == 3 else y
