"""A training step from the first trained layer on: the frozen prefix before it is run once a batch, for every method."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fedact.models.micro_batch import Inputs, add_gradient
from fedact.models.tasks import Loss, task_loss
from fedact.nn.layers import OriginConv2d, RecomputedSequential
from fedact.nn.prefix.graph import takes_part
from fedact.nn.prefix.split import PrefixOutputs, split

Batch = tuple[Tensor, Tensor]


def twin(model: nn.Module) -> nn.Module:
    """Return a copy that shares every weight's and buffer's storage, with gradients and freezing of its own."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer for buffer in model.buffers()})


def record(model: nn.Module, x: Tensor) -> Inputs:
    """Return the outputs of a model's frozen prefix for a batch of images, or the images where there is no such prefix.

    There is none where the first trained layer takes the images, or where torch.fx cannot trace the code that leads there.
    """
    parts = split(model)
    return x if parts is None else PrefixOutputs(parts, parts.prefix(x))


def prefix_of(model: nn.Module, x: Tensor, shared: Inputs) -> Inputs:
    """Return the prefix outputs that models of the same weights share, or a model's own where it is cut elsewhere.

    It is where it keeps the input of a frozen layer, or recomputes segments.
    """
    elsewhere = any(isinstance(module, OriginConv2d | RecomputedSequential) for module in model.modules())
    return record(model, x) if elsewhere else shared


def step(
    model: nn.Module,
    batch: Batch,
    prefix: Inputs | None = None,
    reached: Callable[[], None] | None = None,
    loss: Loss = task_loss,
) -> None:
    """Add a batch's gradient to the model's.

    prefix: what ``record`` returned for the same batch, weights and trained layers, to save the time it took.
    reached: called when the first layer that is trained, or keeps an input for one, is entered.
    """
    x = batch[0] if prefix is None else prefix
    x = x.under(model) if isinstance(x, PrefixOutputs) else x
    with ExitStack() as hooks:

        def enter(*_: Any) -> None:
            hooks.close()
            if reached is not None:
                reached()

        for module in model.modules() if reached else ():
            if takes_part(module):
                hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
        add_gradient(model, x, batch[1], len(batch[1]), loss)


def parts(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Yield a batch in micro-batches of a size, None: as it is; each alone in its storage."""
    x, y = batch
    if size is None or size >= len(y):
        yield batch
        return
    for start in range(0, len(y), size):
        yield tuple(each[start : start + size].clone(memory_format=torch.preserve_format) for each in (x, y))  # type: ignore[misc]
