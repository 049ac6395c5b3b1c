"""Training from the frozen prefix's outputs, which are computed once for all epochs, or read from a cache."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import ceil
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from fedact.config.plan import Plan
from fedact.data import Loader
from fedact.measure.memory import measure_memory, stored_bytes
from fedact.nn.prefix.chunks import in_chunks
from fedact.nn.prefix.folded import FoldedPrefix, folded_prefix
from fedact.nn.prefix.outputs import MIN_GROUP, Layout, Positions, group_for, layouts, outputs_by_group
from fedact.nn.prefix.split import PrefixOutputs, Split, split
from fedact.nn.prefix.tiles import TiledPrefix
from fedact.nn.surgery import states
from fedact.training.prefix_cache import PrefixCache

MAX_MEMORY_BYTES = 2**28
"""Most bytes of prefix outputs in memory for a client's epochs; a client with more computes them for every batch."""

Batches = Callable[[Positions], tuple["BatchOutputs", Tensor]]


@dataclass(frozen=True, eq=False)
class BatchOutputs(PrefixOutputs):
    """The prefix outputs of a loader's examples at these positions; peak_of: returns the prefix's peak bytes on a batch."""

    positions: Positions
    peak_of: Callable[[Positions], int]

    def __getitem__(self, part: slice) -> Self:
        return replace(super().__getitem__(part), positions=self.positions[part])

    def peak_bytes(self) -> int:
        """Return the peak bytes of the prefix on this batch, run as on a device, without the methods' state."""
        return self.peak_of(self.positions)


@dataclass(eq=False)
class FrozenPrefix:
    """The frozen prefix of an installed model.

    layouts: how its outputs are stored. prefix_chunk, tiles: the plan's, how it runs on a device.
    group: examples at a time in this simulation, which runs its folded copy where there is one; it is made when outputs are
    first computed. Its peak bytes on a device are cached by the number of examples, without the methods' state.
    """

    split: Split
    layouts: tuple[Layout, ...]
    prefix_chunk: int
    tiles: int
    group: int
    _folded: dict[bool, FoldedPrefix | None] = field(default_factory=dict, init=False, repr=False)
    _peaks: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the outermost modules that the prefix calls."""
        return tuple(str(node.target) for node in self.split.parts.before.find_nodes(op="call_module"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The model's tensors that the prefix's outputs depend on, by name."""
        model, graph = self.split.model, self.split.parts.before
        modules = tuple(f"{name}." for name in self.modules)
        alone = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: tensor for name, tensor in named if name.startswith(modules) or name in alone}

    def reads(self, names: Collection[str]) -> bool:
        """Tell whether the prefix's outputs depend on any of these tensors."""
        return not self.tensors.keys().isdisjoint(names)

    def fits_in_memory(self, examples: int) -> bool:
        """Tell whether the outputs for this many examples take at most ``MAX_MEMORY_BYTES``."""
        return examples * sum(layout.nbytes for layout in self.layouts) <= MAX_MEMORY_BYTES

    def from_memory(self, loader: Loader, steady: bool = False) -> Batches:
        """Return batches of the loader's examples as BatchOutputs, from outputs that are computed now and stay in memory.

        steady: whether the prefix's weights never change; what is made of them once then pays.
        """
        outputs = self._computed(loader, steady, np.arange(len(loader)))
        return partial(self._batch, loader, lambda chosen: [value[torch.from_numpy(chosen)] for value in outputs])

    def on_demand(self, loader: Loader, steady: bool = False) -> Batches:
        """Return batches of the loader's examples as BatchOutputs, computed for every batch; steady: as in from_memory."""
        return partial(self._batch, loader, partial(self._computed, loader, steady))

    def from_cache(self, loader: Loader, cache: PrefixCache, rows: Positions) -> Batches:
        """Return batches of the loader's examples as BatchOutputs, from a cache; rows: the examples' rows in it.

        What it lacks is computed now, for in groups of a batch's missing examples most places would be empty.
        Where the outputs fit in memory, they are read once, at the first batch.
        """

        def make(missing: Positions) -> Iterator[tuple[Positions, list[Tensor]]]:
            places = {int(row): place for place, row in enumerate(rows)}
            at = np.array([places[int(row)] for row in missing], np.int64)
            for chosen, values in self._by_group(loader, True, at):
                yield rows[chosen], values

        cache.fill(rows, make)
        if not self.fits_in_memory(len(rows)):
            return partial(self._batch, loader, lambda chosen: cache.get(rows[chosen], make))
        whole: list[Tensor] = []

        def read(chosen: Positions) -> list[Tensor]:
            whole[:] = whole or cache.get(rows, make)
            return [value[torch.from_numpy(chosen)] for value in whole]

        return partial(self._batch, loader, read)

    def _computed(self, loader: Loader, steady: bool, chosen: Positions) -> list[Tensor]:
        """Return the prefix outputs of these examples in memory order, a tensor a layout."""
        groups = [values for _, values in self._by_group(loader, steady, chosen)]
        return [torch.cat(parts) for parts in zip(*groups, strict=True)]

    def _by_group(self, loader: Loader, steady: bool, chosen: Positions) -> Iterator[tuple[Positions, list[Tensor]]]:
        """Return what ``outputs_by_group`` does of these examples, with the model's weights as they are now."""
        if len(chosen) and steady not in self._folded:
            group = self.group if steady else 0
            self._folded[steady] = folded_prefix(self.split, loader(chosen[:MIN_GROUP])[0], group)
        folded = self._folded.get(steady)
        if folded is not None:
            folded.refresh()
        return outputs_by_group(folded or self.split.prefix, loader, chosen, self.layouts, self.group)

    def _batch(
        self, loader: Loader, load: Callable[[Positions], list[Tensor]], chosen: Positions
    ) -> tuple[BatchOutputs, Tensor]:
        """Return a batch and its targets; load: returns stored outputs, a tensor a layout."""
        stored = zip(self.layouts, load(chosen), strict=True)
        values = tuple(layout.from_memory_order(value.to(loader.device)) for layout, value in stored)
        return BatchOutputs(self.split, values, chosen, partial(self._peak, loader)), loader.targets(chosen)

    def _peak(self, loader: Loader, chosen: Positions) -> int:
        """Return the prefix's peak bytes on a batch, without the methods' state."""
        if len(chosen) not in self._peaks:
            state, (x, _) = stored_bytes(states(self.split.model).values()), loader(chosen)
            with measure_memory(self.split.model, inputs=(x,)) as memory, torch.no_grad():
                _ = in_chunks(TiledPrefix(self.split, self.tiles), x, self.prefix_chunk)
            self._peaks[len(chosen)] = memory.peak_bytes - state
        return self._peaks[len(chosen)]


def frozen_prefix(model: nn.Module, plan: Plan, loader: Loader, examples: float) -> FrozenPrefix | None:
    """Return the frozen prefix of a model under a plan, None where it cannot be split off or its outputs be stored.

    loader: some examples, to measure the outputs' layouts. examples: the number a client holds, on average.
    """
    parts = split(model)
    if parts is None or not len(loader):
        return None
    stored_layouts = layouts(parts, loader, np.arange(min(len(loader), MIN_GROUP)))
    if stored_layouts is None:
        return None
    small = FrozenPrefix(parts, stored_layouts, plan.prefix_chunk, plan.tiles, MIN_GROUP)
    return replace(small, group=group_for(examples)) if small.fits_in_memory(ceil(examples)) else small
