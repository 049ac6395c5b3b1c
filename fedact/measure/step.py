"""A training step from the first trained layer on: the frozen prefix before it is run once a batch, for every method."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fedact.models.micro_batch import Inputs, add_gradient
from fedact.models.tasks import Loss, task_loss
from fedact.nn.layers import RecomputedSequential, SourceConvolution
from fedact.nn.prefix.graph import starts_suffix
from fedact.nn.prefix.split import PrefixOutputs, split
from fedact.nn.streams.install import blocks_of
from fedact.torch_private import blind

Batch = tuple[Tensor, Tensor]


def shallow_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares every parameter's storage; gradients, freezing and buffers are its own.

    A forward pass may write to buffers: running statistics, or the vectors of a spectral norm's power iteration.
    """
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def prefix_outputs(model: nn.Module, x: Tensor, shared: Inputs | None = None) -> Inputs:
    """Return the outputs of a model's frozen prefix for a batch of images, or the images where there is no such prefix.

    There is none where the first trained layer takes the images, or where torch.fx cannot trace the code that leads there.
    shared: what this returned for another model with the same weights and trained layers; it is returned again where this
    model is cut at the same place, so not where it keeps the input of a frozen layer, recomputes segments, or has blocks in
    streams, which are cut whole.
    """
    cut_elsewhere = any(isinstance(module, SourceConvolution | RecomputedSequential) for module in model.modules())
    if shared is not None and not cut_elsewhere and not blocks_of(model):
        return shared
    parts = split(model)
    return x if parts is None else PrefixOutputs(parts, parts.prefix(x))


def step(
    model: nn.Module,
    batch: Batch,
    prefix: Inputs | None = None,
    reached: Callable[[], None] | None = None,
    loss: Loss = task_loss,
) -> None:
    """Add a batch's gradient to the parameters' gradients.

    prefix: what ``prefix_outputs`` returned for the same batch, weights and trained layers, to save the time it took.
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
            if starts_suffix(module):
                hooks.callback(module.register_forward_pre_hook(blind(enter), prepend=True).remove)
        add_gradient(model, x, batch[1], len(batch[1]), loss)


def parts(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Yield a batch in micro-batches of so many examples, each alone in its storage; None: the batch itself."""
    x, y = batch
    if size is None or size >= len(y):
        yield batch
        return
    for start in range(0, len(y), size):
        yield tuple(each[start : start + size].clone(memory_format=torch.preserve_format) for each in (x, y))  # type: ignore[misc]
