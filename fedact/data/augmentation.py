"""Random crops and flips of what clients train on; a mask goes with its image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Batches = Callable[[np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Augmented:
    """Batches with every image cropped to a random square and mirrored with probability one half, its mask likewise.

    crop: pixels a side, None for whole images. random: the source of all crops and flips, batch after batch.
    """

    batches: Batches
    crop: int | None
    flip: bool
    random: np.random.Generator

    def __call__(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        images, targets = [], []
        for image, target in zip(*self.batches(positions), strict=True):
            if self.crop is not None:
                top, left = (int(self.random.integers(size - self.crop + 1)) for size in image.shape[-2:])
                window = (..., slice(top, top + self.crop), slice(left, left + self.crop))
                image, target = image[window], target[window] if target.dim() else target
            if self.flip and self.random.random() < 0.5:
                image, target = image.flip(-1), target.flip(-1) if target.dim() else target
            images.append(image)
            targets.append(target)
        return torch.stack(images), torch.stack(targets)


def augmented(batches: Batches, crop: int | None, flip: bool, random: np.random.Generator) -> Batches:
    """Return the batches with random crops and flips; the batches themselves where neither is asked for."""
    return batches if crop is None and not flip else Augmented(batches, crop, flip, random)


def center_crop(x: Tensor, y: Tensor, crop: int | None) -> tuple[Tensor, Tensor]:
    """Return the middle square of images and of masks, ``crop`` pixels a side; both as they are for None."""
    if crop is None:
        return x, y
    top, left = ((size - crop) // 2 for size in x.shape[-2:])
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    return x[..., rows, columns].contiguous(), y[..., rows, columns].contiguous() if y.dim() == 3 else y
