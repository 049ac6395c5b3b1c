"""Frozen-prefix outputs, computed in groups of a fixed size, so bit-identical in any batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.prefix.chunks import examples_stand_alone
from fedact.nn.prefix.split import Split

LEAST_GROUP, LARGEST_GROUP = 16, 64

Load = Callable[[np.ndarray], tuple[Tensor, Tensor]]
Positions = Int[np.ndarray, " examples"]


@dataclass(frozen=True)
class Layout:
    """How an output of the prefix is stored: shape and type of one example's, in its order of dimensions in memory."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of one example's part."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def kept(self, value: Tensor) -> Tensor:
        """Return a value with its dimensions in the order of memory, examples first."""
        return value.permute(self.order)

    def taken(self, kept: Tensor) -> Tensor:
        """Return the value behind ``kept``."""
        return kept.permute([self.order.index(dimension) for dimension in range(len(self.order))])


def group_for(examples: float) -> int:
    """Return on how many examples the frozen part is always run at once where clients hold so many.

    Kernels are chosen by a batch's size; at one size what becomes of an example depends neither on its place nor on the
    others. Large groups take less time an example, and a client's last group is filled up.
    """
    return next((size for size in (LEAST_GROUP, 2 * LEAST_GROUP) if examples <= size), LARGEST_GROUP)


def layouts(split: Split, load: Load, positions: Positions) -> tuple[Layout, ...] | None:
    """Return how the prefix's outputs are stored, None where they cannot be stored example by example."""
    x, _ = load(_padded(positions[:LEAST_GROUP], LEAST_GROUP))
    values = split.prefix(x)
    if not all(isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] for value in values):
        return None
    storages = [each.untyped_storage().data_ptr() for each in (x, *values)]
    if len(set(storages)) < len(storages) or not examples_stand_alone(split, x[:2]):
        return None
    orders = [tuple(memory_order(value)) for value in values]
    if any(order[0] != 0 for order in orders):
        return None
    return tuple(
        Layout(tuple(value.permute(order).shape[1:]), order, value.dtype)
        for value, order in zip(values, orders, strict=True)
    )


@torch.no_grad()
def outputs_by_group(
    split: Split, load: Load, positions: Positions, kept_as: Sequence[Layout], group: int
) -> Iterator[tuple[Positions, list[Tensor]]]:
    """Yield the prefix outputs of examples, a group at a time: positions, and tensors in the layouts ``kept_as``."""
    for start in range(0, len(positions), group):
        chosen = positions[start : start + group]
        x, _ = load(_padded(chosen, group))
        values = zip(kept_as, split.prefix(x), strict=True)
        yield chosen, [layout.kept(value)[: len(chosen)] for layout, value in values]


def _padded(positions: Positions, group: int) -> Positions:
    return np.pad(positions, (0, group - len(positions)), mode="edge")
