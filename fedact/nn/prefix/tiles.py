"""Runs the first steps of a frozen prefix patch by patch, so that their large maps never exist whole.

Source: the patches of MCUNetV2 (Lin et al., 2021), here each with the least region of its input.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Graph

from fedact.compression.lowrank.algebra import memory_order
from fedact.config.errors import ConfigError
from fedact.nn.graph import structure
from fedact.nn.layers.function import runs_plain
from fedact.nn.prefix.flat import flat_graph
from fedact.nn.prefix.split import Split
from fedact.nn.prefix.tiles_choice import chosen_stage
from fedact.nn.prefix.tiles_graph import IMAGES
from fedact.nn.prefix.tiles_program import run
from fedact.nn.prefix.tiles_programs import Programs, programs_of
from fedact.nn.prefix.tiles_streams import rooms_of
from fedact.torch_private import is_observed

PROBE = 256
"""The side of the images for which it is asked whether a prefix can be tiled at all."""


# A client puts its plan into the same model every round.
_KNOWN: WeakKeyDictionary[nn.Module, "_Known"] = WeakKeyDictionary()


@dataclass(eq=False)
class _Known:
    """What is known of a model's prefix while ``key`` stays: its flat graph, and programs by shape and type."""

    key: Any
    graph: Graph
    programs: dict[Any, Programs] = field(default_factory=dict)


@dataclass(eq=False)
class TiledPrefix:
    """A frozen prefix in ``tiles`` x ``tiles`` patches, up to the step that makes its peak least.

    tiles: 0 for ``split.prefix``, 1 for whole maps in place. Modules with hooks run whole. What cannot be tiled runs as
    ``split.prefix`` does, under autocast, in traces and in transforms too.
    """

    split: Split
    tiles: int
    _known: tuple[list[bool], _Known] | None = field(default=None, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Any, ...]:
        """Return the prefix's outputs for images."""
        if not self.tiles or x.dim() != 4 or torch.is_autocast_enabled(x.device.type) or runs_plain():
            return self.split.prefix(x)
        programs = self.programs(tuple(x.shape[1:]), x.dtype)
        stage = chosen_stage(programs, self.tiles, x.element_size())
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
        known, model = self._up_to_date(), self.split.model
        if (shape, dtype) not in known.programs:
            known.programs[shape, dtype] = programs_of(model, known.graph, shape, dtype)
        return known.programs[shape, dtype]

    def _up_to_date(self) -> _Known:
        """Return what is known of the prefix, anew where the model or its hooks have changed."""
        observed, model = [is_observed(module) for module in self.modules], self.split.model
        if self._known is None or self._known[0] != observed:
            before = self.split.parts.before
            key = structure(model), [str(node.target) for node in before.nodes], observed, rooms_of(model)
            known = _KNOWN.get(model)
            if known is None or known.key != key:
                known = _KNOWN[model] = _Known(key, flat_graph(model, before))
            self._known = observed, known
        return self._known[1]

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
                # As streams read it without a copy.
                order = (0, 2, 3, 1) if programs.has_streams else memory_order(part)
                whole = torch.empty_permuted(shape, order, dtype=part.dtype, device=part.device)
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
    if tiles > 1 and not programs.stages():
        first = next((step for step in programs.steps.steps if step.operation is None), None)
        why = f"{first.node.target} needs whole maps" if first is not None else "no convolution runs there"
        raise ConfigError(f"tiles={tiles}: nothing before the first trained layer can be tiled ({why}): give tiles=0")
