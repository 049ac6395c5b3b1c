"""``random_projection``: fewer rows, each a random mixture of many, whose weight gradient has the right mean."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil, pi, prod, sqrt
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedact.compression.accumulation import Total
from fedact.compression.method import (
    NO_STATE,
    Compressed,
    Method,
    State,
    Sweep,
    Traits,
    computable,
    item_size,
    part_way,
    shape_of,
)
from fedact.compression.noise import Noisy, next_seed
from fedact.compression.operations import Operation
from fedact.compression.plane import is_product
from fedact.config.spec import settings

BLOCK = 64
"""Rows that are mixed with each other; more would not make the gradient's variance less."""
CHUNK = 16
"""Blocks whose matrices exist at a time."""
USUAL_RATIO = 0.2
LEVELS = (0.98, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
"""Ratios between which a budget chooses."""
ROW_TYPES = {torch.float16: torch.bfloat16}
"""A mixture of rows may be out of float16's range."""

Rows = Float[Tensor, "rows channels"]
Ratio = Annotated[float, Field(gt=0, le=1)]


@settings("random_projection")
class RandomProjection(Noisy):
    """A random projection of the rows (batch x positions) to fewer: an unbiased gradient, straight from the projection.

    Of 64 rows of channels each, S X is stored, S = sqrt(64 / k) P C D: D random signs, C the orthonormal cosine transform, P
    k of its 64 rows, drawn at random. E[S'S] is the identity, so that the mean of the reconstruction S'S X is X, and that
    of (S G)'(S X), the weight gradient of a linear layer or a 1 x 1 convolution, is G'X. At ratio 1 S is orthogonal and
    nothing is lost. S is made again from a seed of 8 bytes; rows take 4 bytes an element in float32. State: the next step's
    seed, 8 bytes.
    Bershatsky et al., *Memory-efficient Backpropagation through Large Linear Layers*, 2022, arXiv 2201.13195, section 3. In
    CompAct (Shamshoum et al., NAACL 2025, arXiv 2410.15352) channels are projected, and the optimizer stays among them.

    ratio: above 0, at most 1, of the rows, rounded up in every block; a plan's budget chooses it, and where there is none it
    is 0.2.

    >>> from fedact.compression import METHODS
    >>> METHODS["random_projection"](ratio=0.25).predicted_bytes((16, 96, 14, 14))
    301064
    """

    traits: ClassVar[Traits] = Traits(
        "Bershatsky et al., 2022, arXiv 2201.13195, section 3",
        published="ratio=0.2",
        sweep=Sweep("ratio", (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)),
        tensor_seconds=6e-4,
        element_seconds=1e-8,
        gentlest="ratio=1",
    )

    ratio: Ratio | None = None

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        seed, generator = self.noise(x, state)
        mixed = self._project(rows_of(computable(x)), seed)
        stored = mixed.to(ROW_TYPES.get(x.dtype, x.dtype)), seed.clone()
        return Compressed(stored, (x.shape, x.dtype), next_seed(generator))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        (mixed, seed), (shape, dtype) = compressed.tensors, compressed.metadata
        count, mixed = prod(shape) // shape[1], computable(mixed)
        rows, done = mixed.new_empty(count, mixed.shape[1]), 0
        for matrices, part in self._matrices(count, seed, mixed):
            few = mixed[done : done + matrices.shape[0] * matrices.shape[1]]
            done += len(few)
            torch.bmm(matrices.mT, few.view(*matrices.shape[:2], -1), out=rows[part].view(len(matrices), -1, few.shape[1]))
        return images_of(rows.to(dtype), shape)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        mixed, seed = compressed.tensors
        if not is_product(operation, weight):
            return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)
        grads = self._project(rows_of(computable(grad_output)), seed)
        return (grads.T @ computable(mixed)).view(weight.shape).to(weight.dtype)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        if not is_product(operation, weight):
            super().add_weight_gradient(total, compressed, grad_output, weight, operation)
            return
        mixed, seed = compressed.tensors
        grads = self._project(rows_of(computable(grad_output)), seed)
        total.tensor().flatten(1).addmm_(grads.T.to(weight.dtype), mixed.to(weight.dtype))

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape = shape_of(x)
        channels = shape[1]
        whole, rest = divmod(prod(shape) // max(1, channels), BLOCK)
        rows = whole * self._count(BLOCK) + self._count(rest)
        return rows * channels * item_size(x) + torch.int64.itemsize

    def levels(self, x: Tensor, spectra: Any = None) -> dict[float, Method]:
        """Return the method with a ratio fixed."""
        return {1.0: self} if self.ratio is not None else {ratio: replace(self, ratio=ratio) for ratio in LEVELS}

    @property
    def has_free_settings(self) -> bool:
        return self.ratio is None

    def between(self, other: Method, share: float) -> Method | None:
        if not (isinstance(other, RandomProjection) and self.ratio and other.ratio):
            return None
        return replace(self, ratio=part_way(self.ratio, other.ratio, share))

    def _count(self, rows: int) -> int:
        """Return how many rows are stored of a block of so many."""
        return ceil((self.ratio or USUAL_RATIO) * rows)

    def _project(self, rows: Rows, seed: Tensor) -> Rows:
        """Return S times the rows."""
        parts = [
            torch.bmm(matrices, rows[part].reshape(len(matrices), -1, rows.shape[1])).flatten(0, 1)
            for matrices, part in self._matrices(len(rows), seed, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _matrices(self, rows: int, seed: Tensor, like: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Yield S of some blocks at a time, and the rows that they are of; the same for the same seed and number of rows."""
        generator = torch.Generator(like.device).manual_seed(int(seed))
        whole = rows - rows % BLOCK
        spans = [(start, min(start + CHUNK * BLOCK, whole), BLOCK) for start in range(0, whole, CHUNK * BLOCK)]
        if rows > whole:
            spans.append((whole, rows, rows - whole))
        for start, stop, size in spans:
            blocks, count = (stop - start) // size, self._count(size)
            signs = torch.randint(2, (blocks, 1, size), generator=generator, device=like.device).mul_(2).sub_(1)
            drawn = torch.rand((blocks, size), generator=generator, device=like.device).topk(count, 1).indices
            cosines = torch.from_numpy(_cosines(size)).to(like)
            yield cosines[drawn].mul_(signs).mul_(sqrt(size / count)), slice(start, stop)


def rows_of(x: Tensor) -> Rows:
    """Return the positions of all examples as rows of channels."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def images_of(rows: Rows, shape: Sequence[int]) -> Tensor:
    """Return rows of channels in the shape of the tensor behind ``rows_of``."""
    return rows.view(shape[0], *shape[2:], -1).movedim(-1, 1)


@lru_cache(maxsize=BLOCK)
def _cosines(size: int) -> NDArray[np.float64]:
    """Return the orthonormal cosine transform (DCT-II) of so many rows."""
    places = np.arange(size)
    table = sqrt(2 / size) * np.cos(pi / size * (places[:, None] * (places + 0.5)))
    table[0] = sqrt(1 / size)
    return table
