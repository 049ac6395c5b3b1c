"""Estimated seconds of a step: a rule of thumb, the same on every machine, that breaks ties between equally good plans."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.nn.graph import named_modules
from fedact.nn.streams.arithmetic import Geometry
from fedact.nn.streams.function import weights
from fedact.nn.streams.install import blocks_of
from fedact.nn.streams.pooled import PooledStage
from fedact.nn.streams.spare import Spare
from fedact.planner.saved_inputs import SavedInput

CALL_SECONDS = 4e-5
"""A module's forward or backward pass on next to nothing."""
MULTIPLICATIONS_A_SECOND = 1.5e10


BLOCK_CALLS, GROUP_CALLS = (8, 11), (3, 7)
"""A block in streams, and each group of its channels, take as long as so many modules on next to nothing: forward, and
backward. Of 200 steps of MobileNetV2 at 64 and 128 px such estimates are 11 % wrong on average."""
STREAMED_WORK = 0.5
"""The time of a multiplication in streams, relative to that on whole maps, which go through memory more often."""


@dataclass(frozen=True)
class StreamedBlock:
    """A block that may run in streams: the names of its modules, its geometry and weights, the shape of its inputs.

    spare: what its wide maps may take beside the room.
    """

    modules: tuple[str, ...]
    geometry: Geometry | PooledStage
    spare: Spare
    weights: tuple[Tensor, ...]
    shape: torch.Size

    def groups(self, examples: int, room: int, is_recorded: bool, backward: bool) -> int:
        """Return in how many groups its channels run on so many examples, forward or backward."""
        shape = torch.Size((examples, *self.shape[1:]))
        share = self.spare.backward if backward else self.spare.forward if is_recorded else self.spare.frozen
        room += int(share * shape.numel() * self.weights[0].element_size())
        # The wide channels are the depthwise convolution's, or the only one's.
        wide, *_ = self.weights[-2:]
        return ceil(len(wide) / self.geometry.step(shape, self.weights, room, backward))


@dataclass(frozen=True)
class ModuleCosts:
    """Multiplications of each leaf module for one example, and the shape of its input, by the module's name."""

    multiplications: dict[str, float]
    shapes: dict[str, torch.Size]

    def seconds(self, modules: Iterable[str], examples: int) -> float:
        """Return the estimated seconds of running these modules once, forward or backward."""
        names = list(modules)
        return len(names) * CALL_SECONDS + self.work_seconds(names, examples)

    def work_seconds(self, modules: Iterable[str], examples: int) -> float:
        """Return the part of these seconds that grows with the number of examples."""
        return examples * sum(self.multiplications.get(name, 0.0) for name in modules) / MULTIPLICATIONS_A_SECOND

    def blocks(self, model: nn.Module) -> tuple[StreamedBlock, ...]:
        """Return the blocks of a model that is installed in streams."""
        names = {module: name for name, module in named_modules(model)}
        found = []
        for block in blocks_of(model):
            modules = tuple(names[module] for module in block.modules)
            tensors = tuple(tensor for stage in block.stages for tensor in stage.tensors())
            found.append(StreamedBlock(modules, block.geometry, block.spare, weights(tensors), self.shapes[modules[0]]))
        return tuple(found)


def measure_costs(model: nn.Module, x: Tensor) -> ModuleCosts:
    """Return the multiplications of every leaf module for one example, counted by running the model on x."""
    counts, shapes = dict[str, float](), dict[str, torch.Size]()

    def count(name: str, module: nn.Module, args: Any, output: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(output, Tensor):
            per_element = weight[0].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 1
            counts[name] = counts.get(name, 0.0) + output.numel() / len(x) * per_element
        if args and isinstance(args[0], Tensor):
            shapes[name] = args[0].shape

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(partial(count, name)) for name, module in leaves]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return ModuleCosts(counts, shapes)


def step_seconds(
    costs: ModuleCosts,
    gradient_path: set[str],
    saved_inputs: Iterable[SavedInput],
    methods: Mapping[str, Method],
    elements: Mapping[str, int],
    micro_batch: int,
    batch_size: int,
    blocks: Iterable[StreamedBlock] = (),
    room: int = 0,
) -> float:
    """Return the estimated seconds of a batch in micro-batches.

    gradient_path: names of the modules that a gradient passes. methods: by the saved input's key; elements: of that input,
    for one example. blocks: those that run in streams, with ``room`` bytes for the wide maps of each.
    """
    streamed = {name for block in blocks for name in block.modules}
    whole = costs.multiplications.keys() - streamed
    seconds = costs.seconds(whole, micro_batch) + 2 * costs.seconds(gradient_path - streamed, micro_batch)
    for block in blocks:
        work = STREAMED_WORK * costs.work_seconds(block.modules, micro_batch)
        is_passed = not gradient_path.isdisjoint(block.modules)
        for backward in range(1 + is_passed):
            groups = block.groups(micro_batch, room, is_passed, bool(backward))
            seconds += (BLOCK_CALLS[backward] + groups * GROUP_CALLS[backward]) * CALL_SECONDS
        # The backward pass makes the wide maps again.
        seconds += 4 * work if is_passed else work
    for saved in saved_inputs:
        seconds += sum(costs.seconds(chain, micro_batch) for chain in saved.chains if streamed.isdisjoint(chain))
        traits = methods[saved.key].traits
        seconds += traits.tensor_seconds + traits.element_seconds * elements[saved.key] * micro_batch
    return seconds * ceil(batch_size / micro_batch)
