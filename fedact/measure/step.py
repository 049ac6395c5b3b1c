"""A training step from the first trained layer on: what lies before it is run once a batch, for every method."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fedact.models.tasks import loss_under, task_loss
from fedact.nn.layers import OriginConv2d
from fedact.nn.prefix.graph import takes_part
from fedact.nn.prefix.split import in_place_of_forward
from fedact.nn.surgery import is_lean

Batch = tuple[Tensor, Tensor]
Prefix = list[Any]
"""What the outermost modules before the first trained layer returned for a batch, in the order of their calls."""


class _Reached(Exception):
    """The first trained layer."""


def twin(model: nn.Module) -> nn.Module:
    """Return a copy that shares every weight's and buffer's storage, with gradients and freezing of its own."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(buffer): buffer for buffer in model.buffers()})


def record(model: nn.Module, x: Tensor) -> Prefix:
    """Run the model up to its first trained layer and return what its frozen modules made of x."""
    prefix: Prefix = []
    inside = False

    def remember(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return plain(*args, **kwargs)
        inside = True
        output = plain(*args, **kwargs)
        inside = False
        # Copied, here and when handed out: what follows may write into it.
        prefix.append(copy.deepcopy(output))
        return output

    def stop() -> None:
        raise _Reached

    with torch.no_grad(), suppress(_Reached), _in_their_place(model, remember, stop):
        model(x)
    return prefix


def prefix_of(model: nn.Module, x: Tensor, shared: Prefix) -> Prefix:
    """Return the prefix that other models share, or the model's own, where it keeps the input of a frozen layer."""
    return record(model, x) if any(isinstance(module, OriginConv2d) for module in model.modules()) else shared


def step(
    model: nn.Module,
    batch: Batch,
    prefix: Prefix | None = None,
    reached: Callable[[], None] = lambda: None,
    loss: Callable[[Tensor, Tensor], Tensor] = task_loss,
) -> None:
    """Add a batch's gradient to the model's.

    prefix: of the same batch and the same trained layers, to save the time it took; what lies between its modules is run
    again. reached: called when the first trained layer is entered. From there on nothing is replayed: a frozen layer that
    runs later, or again in the backward pass, runs.
    """
    left = iter(prefix or ())

    def replay(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return copy.deepcopy(next(left)) if prefix else plain(*args, **kwargs)

    with _in_their_place(model, replay, reached):
        loss_under(is_lean(model), loss)(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]


def parts(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Yield a batch in micro-batches of a size, None: as it is; each alone in its storage."""
    x, y = batch
    if size is None or size >= len(y):
        yield batch
        return
    for start in range(0, len(y), size):
        yield tuple(each[start : start + size].clone(memory_format=torch.preserve_format) for each in (x, y))  # type: ignore[misc]


def part_step(model: nn.Module, part: Batch, batch_examples: int) -> None:
    """Add a micro-batch's part of the batch's gradient to the model's, nothing replayed."""
    loss = loss_under(is_lean(model), task_loss)(model(part[0]), part[1]) * (len(part[1]) / batch_examples)
    loss.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _in_their_place(model: nn.Module, call: Callable[..., Any], reached: Callable[[], None]) -> Iterator[None]:
    """Run ``call(forward, *args)`` in the place of the outermost frozen modules' forward, up to the first trained layer.

    A frozen layer whose input is kept for a trained one counts as one: keeping is a part of the step.
    """
    with ExitStack() as stack:

        def leave(*_: Any) -> None:
            stack.close()
            reached()

        for module in model.modules():
            if takes_part(module):
                stack.callback(module.register_forward_pre_hook(leave, prepend=True).remove)
        for module in dict.fromkeys(_outermost_frozen(model)):
            stack.enter_context(in_place_of_forward(module, _bound(call, module.forward)))
        yield


def _outermost_frozen(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) in (nn.ModuleList, nn.ModuleDict) or any(takes_part(module) for module in child.modules()):
            yield from _outermost_frozen(child)
        else:
            yield child


def _bound(call: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: call(plain, *args, **kwargs)
