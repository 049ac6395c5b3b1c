"""What a plan keeps, tensor by tensor, with the time that it takes here; and a whole step's time beside plain training's."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedact.compression import make_method
from fedact.config.plan import Kept, Plan
from fedact.measure.cost import Clock, time_micro_batches
from fedact.measure.step import Batch, shallow_copy
from fedact.nn.layers import CodecLayer, LayerCodec, RematerializedCodec
from fedact.nn.layers.rematerialized import Rematerialization
from fedact.nn.surgery import apply, calibrate, compress, kept_inputs

REPEATS = 5
"""Times that each tensor is encoded and decoded; the fastest counts, for anything else on the machine only adds to it."""


@dataclass(frozen=True)
class InputCost:
    """One input in a step under a plan: kept, or made again from another.

    name: the layer that takes it. seconds: of encoding and decoding it in all micro-batches of a step; where it is made
    again, of decoding the other and of the layers between. expected_error: of keeping it so, for all that is made from it.
    source: the layer whose kept input it is made again from. frozen: whether the layer is not trained, and its input kept
    for others alone. images: whether it is the very images, which count nothing.
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
    """A whole step's seconds under a plan, and in plain training of the same layers at once: the least of a few."""

    seconds: float
    plain_seconds: float


def input_costs(model: nn.Module, plan: Plan, x: Tensor, clock: Clock = time.perf_counter) -> Iterator[InputCost]:
    """Yield what a plan keeps, in the order of its tensors; a frozen layer's input comes before the first that needs it.

    x: a whole batch; its first micro-batch is encoded and decoded here.
    """
    x = x[: plan.micro_batch].clone()
    codecs = _derived(apply(model, plan))
    origins = {name: _owner(model, codec.origin) for name, codec in codecs.items()}
    own = [kept.name for kept in plan.kept]
    inputs = kept_inputs(model, [*own, *(origin for origin in origins.values() if origin not in own)], x)
    watch = Watch(x, plan.batch_size / plan.micro_batch, clock)
    for kept in plan.kept:
        if kept.name not in codecs:
            yield watch.kept(kept, kept.name, inputs[kept.name])
            continue
        origin, codec = origins[kept.name], codecs[kept.name]
        if codec.counts:
            yield replace(watch.kept(kept, origin, inputs[origin]), frozen=True)
        seconds = watch.making_again(codec, inputs[origin], inputs[kept.name].dtype)
        yield InputCost(kept.name, kept.shape, kept.method, 0, seconds, source=origin)


def _derived(model: nn.Module) -> dict[str, RematerializedCodec]:
    """Return the codecs of the inputs that are made again, by the layers' names."""
    found = {name: module.codec for name, module in model.named_modules() if isinstance(module, CodecLayer)}
    return {name: codec for name, codec in found.items() if isinstance(codec, RematerializedCodec)}


def _owner(model: nn.Module, codec: LayerCodec) -> str:
    return next(
        str(name) for name, module in model.named_modules() if isinstance(module, CodecLayer) and module.codec is codec
    )


@dataclass(frozen=True)
class Watch:
    """Times what is done once a micro-batch, in seconds a step; x: the images of one."""

    x: Tensor
    micro_batches: float
    clock: Clock

    def kept(self, kept: Kept, name: str, x: Tensor) -> InputCost:
        """Return the part of the named layer, whose input x is kept."""
        images = make_method(kept.method).traits.keeps_input and x.shape == self.x.shape and torch.equal(x, self.x)
        cap, seconds = 0 if images else kept.cap_bytes, self.coding(kept.method, x)
        return InputCost(name, tuple(x.shape), kept.method, cap, seconds, kept.expected_error, images=images)

    def coding(self, method_name: str, x: Tensor) -> float:
        """Return the time of encoding and decoding x, where the method goes on from an earlier step."""
        method = make_method(method_name).for_dimensions(x.dim())
        state = method.compress(x, method.start(0)).state
        return self._least(lambda: method.reconstruct(method.compress(x, state)))

    def making_again(self, codec: RematerializedCodec, x: Tensor, dtype: torch.dtype) -> float:
        """Return the time of decoding x, the origin's input, and running the layers between."""
        method = codec.method.for_dimensions(x.dim())
        compressed, again = method.compress(x, method.start(0)), Rematerialization(method, codec.chain, dtype)
        return self._least(lambda: again.reconstruct(compressed))

    def _least(self, action: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPEATS):
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
    """Time whole steps under a plan and plain training's of the same layers at once; the first batch is not timed."""
    plain = compress(shallow_copy(model), "vanilla", plan.layers, train_norm)
    own = apply(shallow_copy(model), plan)
    if any(make_method(kept.method).traits.calibrated for kept in plan.kept):
        calibrate(own, batches[0][0])
    rows = time_micro_batches({"plan": (own, plan.micro_batch), "plain": (plain, None)}, batches, clock)
    return StepTime(*(min(row[name] for row in rows) for name in ("plan", "plain")))
