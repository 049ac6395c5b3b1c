"""Runs the first steps of a frozen prefix patch by patch, so that their large maps never exist whole.

Source: the patches of MCUNetV2 (Lin et al., 2021), here each with the least region of its input.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedact.config.errors import ConfigError
from fedact.nn.prefix.split import Split, split
from fedact.nn.prefix.tiles_choice import Programs, least_tiling, programs_for
from fedact.nn.prefix.tiles_graph import IMAGES
from fedact.nn.prefix.tiles_program import run
from fedact.torch_private import is_observed

PROBE = 256
"""The side of the images for which it is asked whether a prefix can be tiled at all."""


@dataclass(eq=False)
class TiledPrefix:
    """A frozen prefix in ``tiles`` x ``tiles`` patches, up to the step that makes its peak least; 1: whole, in place.

    Programs are cached by the images' shape and type, and by the modules with hooks, which run whole. What cannot be tiled
    runs as ``split.prefix`` does.
    """

    split: Split
    tiles: int
    _programs: dict[Any, tuple[Programs, int] | None] = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Any, ...]:
        """Return the prefix's outputs for images."""
        chosen = None if torch.is_autocast_enabled(x.device.type) or x.dim() != 4 else self._chosen(x)
        if chosen is None:
            return self.split.prefix(x)
        programs, stage = chosen
        values: dict[int, Any] = {IMAGES: x}
        if stage:
            values[programs.steps.steps[stage - 1].output] = self._assembled(programs, stage, x)
        run(programs.rest(stage), self.split.model, values)
        return tuple(values[output] for output in programs.steps.outputs)

    def _chosen(self, x: Tensor) -> tuple[Programs, int] | None:
        """Return the programs for these images, and the step at which tiling ends."""
        called = [str(node.target) for node in self.split.parts.before.find_nodes(op="call_module")]
        modules = [module for name in called for module in self.split.model.get_submodule(name).modules()]
        key = x.shape[1:], x.dtype, tuple(map(is_observed, modules))
        if key not in self._programs:
            programs = programs_for(self.split, tuple(x.shape[1:]), x.dtype)
            best = least_tiling(programs, 1, x.element_size(), [self.tiles])
            self._programs[key] = None if best is None else (programs, best.steps)
        return self._programs[key]

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
                order = torch.channels_last if part.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
                whole = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)
            whole[:, :, down.start : down.stop, across.start : across.stop] = part
            del part
        assert whole is not None
        return whole


def tiled(model: nn.Module, tiles: int) -> TiledPrefix:
    """Return the frozen prefix of a model in tiles; raises ConfigError where its first step needs whole maps."""
    parts = split(model)
    if parts is None:
        raise ConfigError(f"tiles={tiles}: nothing runs before the first trained layer, or it cannot be traced: give tiles=0")
    check_tileable(parts, tiles)
    return TiledPrefix(parts, tiles)


def check_tileable(parts: Split, tiles: int) -> None:
    """Raise ConfigError where nothing of a prefix can be tiled."""
    convolutions = [module for module in parts.model.modules() if isinstance(module, nn.Conv2d)]
    shape = convolutions[0].in_channels if convolutions else 3, PROBE, PROBE
    programs = programs_for(parts, shape, next(parts.model.parameters()).dtype)
    if tiles > 1 and not programs.stages():
        first = next((step for step in programs.steps.steps if step.operation is None), None)
        why = f"{first.node.target} needs whole maps" if first is not None else "no convolution runs there"
        raise ConfigError(f"tiles={tiles}: nothing before the first trained layer can be tiled ({why}): give tiles=0")
