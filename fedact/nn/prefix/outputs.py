"""Frozen-prefix outputs, computed in groups of a fixed size, so bit-identical in any batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.prefix.chunks import Prefix, examples_are_independent
from fedact.nn.prefix.split import Split

MIN_GROUP, MAX_GROUP, GROUP_STEP = 16, 64, 8

Load = Callable[[np.ndarray], tuple[Tensor, Tensor]]
Positions = Int[np.ndarray, " examples"]


@dataclass(frozen=True)
class Layout:
    """How a prefix output is stored, by example: shape (without examples), order of dimensions in memory, and type."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes an example."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def to_memory_order(self, value: Tensor) -> Tensor:
        """Return a view with the dimensions in the order of memory, examples first."""
        return value.permute(self.order)

    def from_memory_order(self, stored: Tensor) -> Tensor:
        """Return the view with its usual dimensions: the inverse of ``to_memory_order``."""
        return stored.permute([self.order.index(dimension) for dimension in range(len(self.order))])


def group_for(examples: float) -> int:
    """Return the prefix's fixed batch size, 16 to 64, for clients with so many examples: few groups, few padded places.

    Kernels are chosen by the batch size, so at one size an example's output is bit-identical in any batch. Larger groups
    take less time an example; a client's last group is padded.
    """
    each = examples / ceil(examples / MAX_GROUP)
    return min(MAX_GROUP, max(MIN_GROUP, GROUP_STEP * ceil(each / GROUP_STEP)))


def layouts(split: Split, load: Load, positions: Positions) -> tuple[Layout, ...] | None:
    """Return the layouts of the prefix's outputs, None where they cannot be stored example by example."""
    x, _ = load(_padded(positions[:MIN_GROUP], MIN_GROUP))
    values = split.prefix(x)
    if not all(isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] for value in values):
        return None
    storages = [tensor.untyped_storage().data_ptr() for tensor in (x, *values)]
    if len(set(storages)) < len(storages) or not examples_are_independent(split, x[:2]):
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
    prefix: Prefix, load: Load, positions: Positions, stored_layouts: Sequence[Layout], group: int
) -> Iterator[tuple[Positions, list[Tensor]]]:
    """Yield (positions, their prefix outputs in memory order, a tensor a layout), ``group`` examples at a time."""
    for start in range(0, len(positions), group):
        chosen = positions[start : start + group]
        x, _ = load(_padded(chosen, group))
        values = zip(stored_layouts, prefix(x), strict=True)
        yield chosen, [layout.to_memory_order(value)[: len(chosen)].contiguous() for layout, value in values]


def _padded(positions: Positions, group: int) -> Positions:
    """Return the positions, the last one repeated up to the group's size."""
    return np.pad(positions, (0, group - len(positions)), mode="edge")
