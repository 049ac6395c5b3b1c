"""Costs of a plan: bytes and seconds of each layer's input, and a whole step's seconds beside plain training's."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedact.compression import kept_method
from fedact.config.plan import Kept, Plan
from fedact.measure.cost import Clock, time_micro_batches
from fedact.measure.step import Batch, shallow_copy
from fedact.nn.layers import CodecLayer, RematerializedCodec
from fedact.nn.layers.provenance import chain_of
from fedact.nn.layers.rematerialized import Rematerialization
from fedact.nn.recompute import streamed_layers
from fedact.nn.surgery import apply, calibrate, compress, layer_inputs

REPETITIONS = 5
"""Every input is compressed and reconstructed so often; the fastest counts, for anything else on the machine adds to it."""


@dataclass(frozen=True)
class InputCost:
    """One layer's input in a step under a plan: saved, or rematerialized from another.

    name: the layer. shape: of one micro-batch. cap_bytes: the most that is stored for it, 0 where nothing is. seconds: of
    compressing and reconstructing it in all micro-batches of a step; of a rematerialized one, of reconstructing the source
    and running the layers between, 0 in streams, where that is no work of its own. expected_error: its part of the plan's
    gradient error, where it is known. source: the layer whose saved input it is rematerialized from. frozen: the layer is
    not trained, and its input is saved for others alone. images: it is the raw images, which count nothing.
    """

    name: str
    shape: tuple[int, ...]
    method: str
    cap_bytes: int
    seconds: float
    expected_error: float | None = None
    source: str | None = None
    frozen: bool = False
    images: bool = False


@dataclass(frozen=True)
class StepTime:
    """Seconds of a whole step under a plan, and of plain training of the same layers at once: the least of a few."""

    seconds: float
    plain_seconds: float


def input_costs(model: nn.Module, plan: Plan, x: Tensor, clock: Clock = time.perf_counter) -> Iterator[InputCost]:
    """Yield the cost of every input in a plan, in the plan's order; a frozen layer's before the first that depends on it.

    x: a whole batch of images, of which the first micro-batch is compressed here. clock: returns seconds.
    """
    x = x[: plan.micro_batch].clone()
    modules = [(name, module) for name, module in apply(model, plan).named_modules() if isinstance(module, CodecLayer)]
    derived = {name: module.codec for name, module in modules if isinstance(module.codec, RematerializedCodec)}
    sources = {
        name: next(owner for owner, module in modules if module.codec is codec.source) for name, codec in derived.items()
    }
    streamed, names = streamed_layers(model), [kept.name for kept in plan.kept]
    sources |= {name: streamed[name] for name in names if name in streamed}
    inputs = layer_inputs(model, [*names, *(source for source in sources.values() if source not in names)], x)
    timer = CodecTimer(x, plan.batch_size / plan.micro_batch, clock)
    for kept in plan.kept:
        if kept.name not in sources:
            yield _saved_cost(timer, kept, kept.name, inputs[kept.name])
            continue
        source, codec = sources[kept.name], derived.get(kept.name)
        if codec.counts if codec else kept.cap_bytes:
            yield replace(_saved_cost(timer, kept, source, inputs[source]), frozen=True)
        seconds = timer.rematerialization(codec, inputs[source], inputs[kept.name].dtype) if codec else 0.0
        yield InputCost(kept.name, kept.shape, kept.method, 0, seconds, source=source)


def _saved_cost(timer: "CodecTimer", kept: Kept, name: str, x: Tensor) -> InputCost:
    """Return the cost of saving the named layer's input x by the method of the plan's entry."""
    images = kept_method(kept.method).traits.keeps_input and x.shape == timer.x.shape and torch.equal(x, timer.x)
    cap, seconds = 0 if images else kept.cap_bytes, timer.codec(kept.method, x)
    return InputCost(name, tuple(x.shape), kept.method, cap, seconds, kept.expected_error, images=images)


@dataclass(frozen=True)
class CodecTimer:
    """Times what a step does once in each of its micro-batches; x: the images of one."""

    x: Tensor
    micro_batches: float
    clock: Clock

    def codec(self, method_name: str, x: Tensor) -> float:
        """Return a step's seconds of compressing and reconstructing x, from the state of an earlier step."""
        method = kept_method(method_name).for_dimensions(x.dim())
        state = method.compress(x, method.start(0)).state
        return self._fastest(lambda: method.reconstruct(method.compress(x, state)))

    def rematerialization(self, codec: RematerializedCodec, x: Tensor, dtype: torch.dtype) -> float:
        """Return a step's seconds of reconstructing the source's input x and running the layers between."""
        method = codec.method.for_dimensions(x.dim())
        compressed, again = method.compress(x, method.start(0)), Rematerialization(method, chain_of(codec.chain), dtype)
        return self._fastest(lambda: again.reconstruct(compressed))

    def _fastest(self, action: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPETITIONS):
            begin = self._now()
            action()
            seconds.append(self._now() - begin)
        return min(seconds) * self.micro_batches

    def _now(self) -> float:
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        return self.clock()


def step_time(
    model: nn.Module, plan: Plan, batches: Sequence[Batch], train_norm: bool = False, clock: Clock = time.perf_counter
) -> StepTime:
    """Return the seconds of a whole step under a plan and in plain training; the first batch is not timed."""
    plain, planned = compress(shallow_copy(model), "vanilla", plan.layers, train_norm), apply(shallow_copy(model), plan)
    if any(kept_method(kept.method).traits.calibrated for kept in plan.kept):
        calibrate(planned, batches[0][0])
    rows = time_micro_batches({"plan": (planned, plan.micro_batch), "plain": (plain, None)}, batches, clock)
    return StepTime(*(min(row[name] for row in rows) for name in ("plan", "plain")))
