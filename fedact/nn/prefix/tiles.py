"""Runs the first steps of a frozen prefix patch by patch, so that their large maps never exist whole.

Source: the patches of MCUNetV2 (Lin et al., 2021), here each with the least region of its input.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from fedact.compression.lowrank.algebra import memory_order
from fedact.config.errors import ConfigError
from fedact.nn.prefix.split import Split
from fedact.nn.prefix.tiles_choice import Programs, least_tiling
from fedact.nn.prefix.tiles_flat import flat_graph
from fedact.nn.prefix.tiles_graph import IMAGES, MapShape, steps_of
from fedact.nn.prefix.tiles_program import run
from fedact.torch_private import is_observed

PROBE = 256
"""The side of the images for which it is asked whether a prefix can be tiled at all."""


@dataclass(eq=False)
class TiledPrefix:
    """A frozen prefix in ``tiles`` x ``tiles`` patches, up to the step that makes its peak least.

    tiles: 0 for ``split.prefix``, 1 for whole maps in place.
    Programs are cached by the images' shape and type, and by the modules with hooks, which run whole. What cannot be tiled
    runs as ``split.prefix`` does, under autocast too.
    """

    split: Split
    tiles: int
    _graph: tuple[tuple[bool, ...], Graph] | None = field(default=None, init=False, repr=False)
    _programs: dict[Any, Programs] = field(default_factory=dict, init=False, repr=False)
    _stages: dict[Programs, int | None] = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Any, ...]:
        """Return the prefix's outputs for images."""
        if not self.tiles or x.dim() != 4 or torch.is_autocast_enabled(x.device.type):
            return self.split.prefix(x)
        programs = self.programs(tuple(x.shape[1:]), x.dtype)
        stage = self._stage(programs, x)
        return self.split.prefix(x) if stage is None else self.run(programs, stage, x)

    @torch.no_grad()
    def run(self, programs: Programs, stage: int, x: Tensor) -> tuple[Any, ...]:
        """Return the prefix's outputs for images; stage: how many steps run in tiles."""
        values: dict[int, Any] = {IMAGES: x}
        if stage:
            values[programs.steps.steps[stage - 1].output] = self._assembled(programs, stage, x)
        run(programs.rest(stage), self.split.model, values)
        return tuple(values[output] for output in programs.steps.outputs)

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The modules that the prefix runs."""
        called = [str(node.target) for node in self.split.parts.before.find_nodes(op="call_module")]
        return [module for name in called for module in self.split.model.get_submodule(name).modules()]

    def programs(self, shape: tuple[int, ...], dtype: torch.dtype) -> Programs:
        """Return the programs for images of this shape and type, with the hooks that are there now."""
        observed = tuple(map(is_observed, self.modules))
        if self._graph is None or self._graph[0] != observed:
            self._graph = observed, flat_graph(self.split.model, self.split.parts.before)
            self._programs.clear()
        key = shape, dtype
        if key not in self._programs:
            self._programs[key] = Programs(steps_of(self.split.model, self._graph[1], MapShape(*shape), dtype))
        return self._programs[key]

    def _stage(self, programs: Programs, x: Tensor) -> int | None:
        """Return after how many steps tiling ends, None where nothing can be tiled."""
        if programs not in self._stages:
            best = least_tiling(programs, 1, x.element_size(), [self.tiles])
            self._stages[programs] = None if best is None else best.steps
        return self._stages[programs]

    def _assembled(self, programs: Programs, stage: int, x: Tensor) -> Tensor:
        """Return the map at the end of a stage, computed tile by tile."""
        last = programs.steps.steps[stage - 1].output
        whole: Tensor | None = None
        for tile in programs.tiles(stage, self.tiles):
            (top, left), (down, across) = tile.images, tile.output
            values = {IMAGES: x[:, :, top.start : top.stop, left.start : left.stop]}
            run(tile.tasks, self.split.model, values)
            part = values.pop(last)
            if whole is None:
                shape = len(x), *programs.steps.shape(last)
                whole = torch.empty_permuted(shape, memory_order(part), dtype=part.dtype, device=part.device)
            whole[:, :, down.start : down.stop, across.start : across.stop] = part
            del part
        assert whole is not None
        return whole


def check_tileable(prefix: TiledPrefix | None, tiles: int) -> None:
    """Raise ConfigError where nothing of a prefix can be tiled; prefix: None where there is none."""
    if prefix is None:
        raise ConfigError(f"tiles={tiles}: nothing traceable runs before the first trained layer: give tiles=0")
    parts = prefix.split
    convolutions = [module for module in parts.model.modules() if isinstance(module, nn.Conv2d)]
    shape = convolutions[0].in_channels if convolutions else 3, PROBE, PROBE
    programs = prefix.programs(shape, next(parts.model.parameters()).dtype)
    if not programs.stages():
        first = next((step for step in programs.steps.steps if step.operation is None), None)
        why = f"{first.node.target} needs whole maps" if first is not None else "no convolution runs there"
        raise ConfigError(f"tiles={tiles}: nothing before the first trained layer can be tiled ({why}): give tiles=0")
