"""Training from where the frozen prefix ends: its outputs are computed once for all epochs, or read from a cache."""

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
from fedact.nn.prefix.outputs import LEAST_GROUP, Layout, Positions, group_for, layouts, outputs_by_group
from fedact.nn.prefix.split import PrefixOutputs, Split, split
from fedact.nn.surgery import states
from fedact.training.prefix_cache import PrefixCache

HELD_BYTES = 2**28
"""Most bytes of a client's prefix outputs that stay in memory for its epochs; larger ones are computed anew each time."""

Batches = Callable[[Positions], tuple["BatchOutputs", Tensor]]


@dataclass(frozen=True, eq=False)
class BatchOutputs(PrefixOutputs):
    """The prefix outputs of some of a loader's examples; peak_of: the peak bytes of the prefix's run on such a batch."""

    positions: Positions
    peak_of: Callable[[Positions], int]

    def __getitem__(self, part: slice) -> Self:
        return replace(super().__getitem__(part), positions=self.positions[part])

    def peak_bytes(self) -> int:
        """Return the peak bytes of the prefix's run on this batch, on a device."""
        return self.peak_of(self.positions)


@dataclass(eq=False)
class FrozenPrefix:
    """The frozen prefix of an installed model, which runs as its plan says on a device.

    group: how many examples it is run on at once here. It remembers the peak bytes of its run on a device, without the
    methods' state, by the number of examples.
    """

    split: Split
    layouts: tuple[Layout, ...]
    prefix_chunk: int
    group: int
    _peaks: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The names of the outermost modules that the part calls."""
        return tuple(str(node.target) for node in self.split.parts.before.find_nodes(op="call_module"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the model that the part's output follows from, by name."""
        model, graph = self.split.model, self.split.parts.before
        modules = tuple(f"{name}." for name in self.modules)
        alone = {str(node.target) for node in graph.find_nodes(op="get_attr")}
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: tensor for name, tensor in named if name.startswith(modules) or name in alone}

    def reads(self, names: Collection[str]) -> bool:
        """Tell whether the part's output follows from one of these tensors."""
        return not self.tensors.keys().isdisjoint(names)

    def holds(self, examples: int) -> bool:
        """Tell whether the values of so many examples may lie in memory at once."""
        return examples * sum(layout.nbytes for layout in self.layouts) <= HELD_BYTES

    def from_memory(self, loader: Loader) -> Batches:
        """Return the batches of a loader's examples as BatchOutputs, all computed now and kept in memory."""
        kept = self._make(loader, np.arange(len(loader)))
        return partial(self._batch, loader, lambda chosen: [value[torch.from_numpy(chosen)] for value in kept])

    def on_demand(self, loader: Loader) -> Batches:
        """Return the same batches, each computed when it is taken and not kept."""
        return partial(self._batch, loader, partial(self._make, loader))

    def from_cache(self, loader: Loader, cache: PrefixCache, rows: Positions) -> Batches:
        """Return the same batches from a cache; rows: the places there of the loader's examples."""
        places = {int(row): place for place, row in enumerate(rows)}

        def make(missing: Positions) -> Iterator[tuple[Positions, list[Tensor]]]:
            at = np.array([places[int(row)] for row in missing], np.int64)
            for chosen, values in outputs_by_group(self.split, loader, at, self.layouts, self.group):
                yield rows[chosen], values

        return partial(self._batch, loader, lambda chosen: cache.get(rows[chosen], make))

    def _make(self, loader: Loader, chosen: Positions) -> list[Tensor]:
        groups = [values for _, values in outputs_by_group(self.split, loader, chosen, self.layouts, self.group)]
        return [torch.cat(each) for each in zip(*groups, strict=True)]

    def _batch(
        self, loader: Loader, take: Callable[[Positions], list[Tensor]], chosen: Positions
    ) -> tuple[BatchOutputs, Tensor]:
        kept = zip(self.layouts, take(chosen), strict=True)
        values = tuple(layout.taken(value.to(loader.device)) for layout, value in kept)
        return BatchOutputs(self.split, values, chosen, partial(self._peak, loader)), loader.targets(chosen)

    def _peak(self, loader: Loader, chosen: Positions) -> int:
        """Return what the part's run on a batch peaks at, with the state that is there meanwhile."""
        if len(chosen) not in self._peaks:
            state, (x, _) = stored_bytes(states(self.split.model).values()), loader(chosen)
            with measure_memory(self.split.model, inputs=(x,)) as memory, torch.no_grad():
                _ = in_chunks(self.split, x, self.prefix_chunk) if self.prefix_chunk else self.split.prefix(x)
            self._peaks[len(chosen)] = memory.peak_bytes - state
        return self._peaks[len(chosen)] + stored_bytes(states(self.split.model).values())


def frozen_prefix(model: nn.Module, plan: Plan, loader: Loader, examples: float) -> FrozenPrefix | None:
    """Return the frozen part of a model that carries a plan, None where it cannot be run apart.

    loader: some examples. examples: how many a client holds.
    """
    parts = split(model)
    kept_as = None if parts is None or not len(loader) else layouts(parts, loader, np.arange(min(len(loader), LEAST_GROUP)))
    if parts is None or kept_as is None:
        return None
    small = FrozenPrefix(parts, kept_as, plan.prefix_chunk, LEAST_GROUP)
    return replace(small, group=group_for(examples)) if small.holds(ceil(examples)) else small
