"""Seconds and floating-point operations of a training step, from the first trained layer on."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedact.config.seeds import Purpose, generator
from fedact.measure.step import Batch, parts, prefix_outputs, step
from fedact.models.micro_batch import Inputs, add_gradient
from fedact.models.tasks import Loss, task_loss
from fedact.torch_private import TorchDispatchMode, convolution_backward, eigh, embedding_bag, flop_formulas, qr, svd

Clock = Callable[[], float]


def time_steps(
    models: Mapping[str, nn.Module],
    warm_up: Batch,
    batches: Sequence[Batch],
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Return the seconds of each batch, by model: forward and backward from the first trained layer on, loss included.

    models: by name, with the same trained layers. All take a batch before any takes the next one; the warm-up batch is not
    timed. clock: returns seconds. seed: of the order of models in each batch.
    """
    rows = []
    for place, batch in enumerate((warm_up, *batches)):
        # In another order each time, so that no method always finds what the same other one left in caches and threads.
        order = generator(seed, Purpose.METHOD, place).permutation(list(models))
        row = {name: _seconds(models[name], batch, prefix_outputs(models[name], batch[0]), clock) for name in order}
        rows.append({name: row[name] for name in models})
    return rows[1:]


def time_micro_batches(
    models: Mapping[str, tuple[nn.Module, int | None]],
    batches: Sequence[Batch],
    clock: Clock = time.perf_counter,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Return the seconds of each batch but the first, by model: of the whole step, in the model's micro-batches.

    models: by name, each with its micro-batch, None for the whole batch. The frozen prefix counts too, whose time depends on
    the micro-batch.
    """
    rows = []
    for place, batch in enumerate(batches):
        order = generator(seed, Purpose.METHOD, place).permutation(list(models))
        row = {}
        for name in order:
            model, micro_batch = models[name]
            begin = _now(batch[0], clock)
            for part in parts(batch, micro_batch):
                add_gradient(model, *part, len(batch[1]))
            row[name] = _now(batch[0], clock) - begin
            model.zero_grad()
        rows.append({name: row[name] for name in models})
    return rows[1:]


def time_ratios(rows: Sequence[Mapping[str, float]], name: str, to: str) -> list[float]:
    """Return one model's time divided by another's, batch by batch.

    >>> time_ratios([{"vanilla": 2.0, "hosvd": 3.0}], "hosvd", to="vanilla")
    [1.5]
    """
    return [row[name] / row[to] for row in rows]


def _seconds(model: nn.Module, batch: Batch, prefix: Inputs, clock: Clock) -> float:
    begin = 0.0

    def reached() -> None:
        nonlocal begin
        begin = _now(batch[0], clock)

    step(model, batch, prefix, reached)
    end = _now(batch[0], clock)
    model.zero_grad()
    return end - begin


def _now(x: Tensor, clock: Clock) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return clock()


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the floating-point operations of what runs inside, by torch.utils.flop_counter's formulas.

    Its own FlopCounterMode also follows modules, with hooks that fail where a backward pass starts another one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0
        self.formulas = {**flop_formulas(), **OWN_FORMULAS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = self.formulas.get(func.overloadpacket)
        if formula:
            self.total += int(formula(*args, **(kwargs or {}), out_val=result))
        return result


def count_flops(
    model: nn.Module, batch: Batch, prefix: Inputs | None = None, loss: Loss = task_loss, keeps_gradient: bool = False
) -> int:
    """Return the floating-point operations of a step from the first trained layer on, recomputation included.

    Counted are convolutions and matrix products, two operations for each multiplication and addition, and decompositions,
    which PyTorch's own counter leaves out. Elementwise operations (quantizing, patch means) count nothing.
    keeps_gradient: leave the step's gradient in the parameters.
    """
    before = 0

    def reached() -> None:
        nonlocal before
        before = counter.total

    with FlopCounter() as counter:
        step(model, batch, prefix, reached, loss)
    if not keeps_gradient:
        model.zero_grad()
    return int(counter.total) - before


def _convolution_backward(grad_output: Tensor, x: Tensor, weight: Tensor, *rest: Any, **__: Any) -> int:
    """Each gradient costs what the forward pass does; PyTorch's formula takes a depthwise layer's for a full one's."""
    transposed, mask = rest[4], rest[7]
    positions = x.shape if transposed else grad_output.shape
    return int(2 * positions[0] * prod(positions[2:]) * weight.numel() * sum(mask[:2]))


def _embedding_bag(table: Tensor, rows: Tensor, *_: Any, **__: Any) -> int:
    """Rows of a table, each multiplied by a weight and added to a sum."""
    return 2 * rows.numel() * table.shape[1]


def _eigh(x: Tensor, *_: Any, **__: Any) -> int:
    *batch, n, _n = x.shape
    return prod(batch) * 9 * n**3


def _qr(x: Tensor, *_: Any, **__: Any) -> int:
    *batch, n, m = *x.shape[:-2], *sorted(x.shape[-2:])
    return prod(batch) * (4 * m * n**2 - 4 * n**3 // 3)


def _svd(x: Tensor, *_: Any, **__: Any) -> int:
    *batch, n, m = *x.shape[:-2], *sorted(x.shape[-2:])
    return prod(batch) * (6 * m * n**2 + 20 * n**3)


OWN_FORMULAS: dict[Any, Callable[..., int]] = {
    convolution_backward: _convolution_backward,
    eigh: _eigh,
    embedding_bag: _embedding_bag,
    qr: _qr,
    svd: _svd,
}
"""What PyTorch has none or another for; Golub and Van Loan's for decompositions with vectors.

Symmetric QR 9n^3, Householder QR with Q, R-SVD.
"""
