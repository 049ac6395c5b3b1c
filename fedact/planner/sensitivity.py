"""What keeping tensors less exactly does to the gradient: measured layer by layer, with everything after a layer exact."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.exact import Exact, Itself
from fedact.compression.method import NO_STATE
from fedact.measure.step import Batch, parts, prefix_of, record, step
from fedact.models.tasks import Loss
from fedact.nn.layers.base import has_weights
from fedact.nn.rematerialization import calls_of
from fedact.nn.surgery import calibrate, install, restore

Methods = Mapping[str, Method]
OnOutput = Callable[[str, Tensor], Tensor | None]

CLOSEST = 1e-12
"""Below this a relative squared difference is rounding."""


@dataclass(frozen=True)
class _RoundTrip(Itself):
    """Keeps what a method makes of a tensor, as it is: every layer that is computed from it finds it ready."""

    traits: ClassVar[Traits] = replace(Exact.traits, source="none: for measuring", keeps_input=False)

    method: Method
    derive: int

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((self.method.reconstruct(self.method.compress(x, self.method.start(0))),))

    def for_dimensions(self, dimensions: int) -> Method:
        return replace(self, method=self.method.for_dimensions(dimensions))


class Errors(NamedTuple):
    """Relative squared errors of one way to keep everything: ||g' - g||^2 / ||g||^2, by layer.

    own: of the weight's gradient where the output's gradient is exact. passed: of the output's gradient where the gradient
    at the next trained layers' outputs is exact: what comes from the slopes of the activations between.
    """

    own: dict[str, float]
    passed: dict[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """The errors of each level, and what is needed to add them up.

    lengths: the squared length of each layer's exact gradient. damping: what of an error in a layer's output gradient is
    left, on average, in the weight gradients of it and of the layers before.
    """

    lengths: dict[str, float]
    levels: list[Errors]
    damping: float


def averaged(found: Sequence[Sensitivity]) -> Sensitivity:
    """Return the mean of what was measured on several batches."""
    levels = [
        Errors(_means([errors.own for errors in each]), _means([errors.passed for errors in each]))
        for each in zip(*(one.levels for one in found), strict=True)
    ]
    damping = sum(one.damping for one in found) / len(found)
    return Sensitivity(_means([one.lengths for one in found]), levels, damping)


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}


class _Exact(NamedTuple):
    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]
    called_once: set[str]


def measure_sensitivity(
    model: nn.Module, batch: Batch, trained: Sequence[str], levels: Sequence[Methods], loss: Loss
) -> Sensitivity:
    """Return what each level (a method for each kept input) does to the gradient of a batch, taken at once.

    trained: the layers with weights, in their order. The model is changed.
    """
    once = set(calls_of(restore(model)))
    install(model, dict.fromkeys(levels[0], Exact()))
    shared = record(model, batch[0])
    exact = _Exact({}, {}, once)
    exact.weights.update(_gradients(model, batch, shared, loss, trained, once, exact.outputs.__setitem__))
    found = []
    for methods in levels:
        install(model, _round_trips(methods))
        found.append(_errors(model, batch, prefix_of(model, batch[0], shared), loss, trained, exact))
    joint = 1.0
    if any(error > CLOSEST for errors in found for error in errors.passed.values()):
        place = len(levels) // 2
        install(model, _round_trips(levels[place]))
        together = relative_errors(
            _gradients(model, batch, prefix_of(model, batch[0], shared), loss, trained), exact.weights
        )
        joint = _damping(together, found[place], list(exact.weights))
    lengths = {name: float(g.square().sum()) for name, g in exact.weights.items()}
    return Sensitivity(lengths, found, joint)


def _round_trips(methods: Methods) -> Methods:
    return {
        name: method if method.traits.keeps_input else _RoundTrip(method, method.derive) for name, method in methods.items()
    }


def _errors(model: nn.Module, batch: Batch, prefix: Any, loss: Loss, trained: Sequence[str], exact: _Exact) -> Errors:
    passed: dict[str, float] = {}

    def put_right(name: str, gradient: Tensor) -> Tensor:
        passed[name] = relative_error(gradient, exact.outputs[name])
        return exact.outputs[name]

    own = relative_errors(_gradients(model, batch, prefix, loss, trained, exact.called_once, put_right), exact.weights)
    return Errors(own, passed)


def _left_alone(name: str, gradient: Tensor) -> None:
    pass


def _gradients(
    model: nn.Module,
    batch: Batch,
    prefix: Any,
    loss: Loss,
    trained: Sequence[str],
    watched: Collection[str] = (),
    on_output: OnOutput = _left_alone,
) -> dict[str, Tensor]:
    """Return the gradient of each trained layer's weight; ``on_output`` sees, and may change, those of the outputs."""
    with ExitStack() as stack:
        for name in trained:
            if name in watched:
                watch = partial(_watch, name=name, on_output=on_output)
                stack.callback(model.get_submodule(name).register_forward_hook(watch).remove)
        step(model, batch, prefix, loss=loss)
    weights = {name: model.get_submodule(name).weight for name in trained}
    found = {name: weight.grad for name, weight in weights.items() if isinstance(weight.grad, Tensor)}
    model.zero_grad()
    return found


def _watch(module: nn.Module, args: Any, output: Tensor, name: str, on_output: OnOutput) -> None:
    if output.requires_grad:
        output.register_hook(partial(on_output, name))  # type: ignore[no-untyped-call]


def _damping(together: Mapping[str, float], apart: Errors, layers: Sequence[str]) -> float:
    """Return how much of the passed errors arrives in the weight gradients, by one step with all of them in it."""
    arrived = sum(together.values()) - sum(apart.own.values())
    sent = sum(error * (layers.index(name) + 1) for name, error in apart.passed.items())
    return max(0.0, arrived / sent) if sent else 0.0


def total_error(
    model: nn.Module, batch: Batch, methods: Methods, loss: Loss, micro_batch: int, calibration: Tensor | None = None
) -> float:
    """Return the sum of the trained layers' errors for a batch in micro-batches; the model is changed.

    calibration: inputs on which methods that are calibrated find their states first.
    """
    trained = [name for name in methods if has_weights(model.get_submodule(name))]
    exact: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}
    for total, chosen in ((exact, dict.fromkeys(methods, Exact())), (ours, methods)):
        install(model, chosen)
        if calibration is not None:
            calibrate(model, calibration)
        for part in parts(batch, micro_batch):
            for name, gradient in _gradients(model, part, None, loss, trained).items():
                share = gradient * (len(part[1]) / len(batch[1]))
                total[name] = total[name] + share if name in total else share
    return sum(relative_errors(ours, exact).values())


def relative_errors(gradients: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """Return ||g' - g||^2 / ||g||^2 by layer."""
    return {name: relative_error(gradients[name], g) for name, g in exact.items()}


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    """Return ||g' - g||^2 / ||g||^2, 0 for a difference that is rounding."""
    length = float(torch.sum(exact.double().square()))
    error = float(torch.sum((gradient.double() - exact.double()).square()))
    relative = error / length if length else float(error > 0)
    return relative if relative > CLOSEST else 0.0
