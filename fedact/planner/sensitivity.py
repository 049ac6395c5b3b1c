"""What compression does to the gradient: measured layer by layer, with everything after the layer exact."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.measure.step import Batch, prefix_outputs, step
from fedact.models.tasks import Loss
from fedact.nn.layers import watch_output
from fedact.nn.rematerialization import call_nodes
from fedact.nn.restoration import uninstall
from fedact.nn.surgery import install
from fedact.planner.gradient_errors import GradientErrors, relative_error, relative_errors
from fedact.planner.round_trip import KnownSpectra, round_trips

Methods = Mapping[str, Method]
"""The method of each saved input, by layer."""
OnOutput = Callable[[str, Tensor], Tensor | None]
"""Called with a layer's name and its output gradient; returns what is to take its place, None to leave it."""


@dataclass(frozen=True)
class Sensitivity:
    """The gradient errors of every level, and what adds them up.

    damping: the mean share of an error in a layer's output gradient that arrives in the weight gradients of this layer and
    of those before it.
    """

    levels: list[GradientErrors]
    damping: float


class ExactGradients(NamedTuple):
    """The exact gradients of weights and of outputs, by layer; outputs only of layers that are called once."""

    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]


def measure_sensitivity(
    model: nn.Module,
    batch: Batch,
    trained: Sequence[str],
    levels: Sequence[Methods],
    loss: Loss,
    room: int | None = None,
    known: KnownSpectra | None = None,
) -> Sensitivity:
    """Return the gradient errors of each level (a method for every saved input) on a batch, taken at once.

    trained: the layers with weights, in their order. room: of a step in streams, where no output gradient is to be seen:
    weights' errors are then those of the whole step. known: spectra that other families have found on this batch; extended.
    The model's methods are changed.
    """
    known = {} if known is None else known
    called_once = set(call_nodes(uninstall(model))) if room is None else set()
    install(model, dict.fromkeys(levels[0], Exact()))
    prefix = prefix_outputs(model, batch[0])
    exact = ExactGradients({}, {})
    exact.weights.update(gradients_of(model, batch, prefix, loss, trained, called_once, exact.outputs.__setitem__))
    errors = []
    for methods in levels:
        if all(method.traits.keeps_input for method in methods.values()):
            errors.append(GradientErrors(dict.fromkeys(exact.weights, 0.0), dict.fromkeys(exact.outputs, 0.0)))
            continue
        install(model, round_trips(methods, known), room=room)
        inputs = prefix_outputs(model, batch[0], prefix)
        errors.append(_errors(model, batch, inputs, loss, trained, called_once, exact))
    middle = len(levels) // 2
    damping = measure_damping(model, batch, levels[middle], errors[middle], exact, loss, room, known)
    return Sensitivity(errors, damping)


def measure_damping(
    model: nn.Module,
    batch: Batch,
    methods: Methods,
    errors: GradientErrors,
    exact: ExactGradients,
    loss: Loss,
    room: int | None = None,
    known: KnownSpectra | None = None,
) -> float:
    """Return how much of the output errors of some methods arrives in the weight gradients, by one step with all in it.

    errors: of these methods; where no output has any, nothing arrives. room: of a step in streams. The model's methods are
    changed.
    """
    layers = list(exact.weights)
    sent = sum(error * (layers.index(name) + 1) for name, error in errors.outputs.items())
    if not sent:
        return 0.0
    install(model, round_trips(methods, {} if known is None else known), room=room)
    gradients = gradients_of(model, batch, None, loss, layers)
    arrived = sum(relative_errors(gradients, exact.weights).values()) - sum(errors.weights.values())
    return max(0.0, arrived / sent)


def _errors(
    model: nn.Module,
    batch: Batch,
    prefix: Any,
    loss: Loss,
    trained: Sequence[str],
    called_once: Collection[str],
    exact: ExactGradients,
) -> GradientErrors:
    """Return the errors of the installed methods, each layer's with the exact output gradient put in its place."""
    outputs: dict[str, float] = {}

    def replace_by_exact(name: str, gradient: Tensor) -> Tensor:
        outputs[name] = relative_error(gradient, exact.outputs[name])
        return exact.outputs[name]

    gradients = gradients_of(model, batch, prefix, loss, trained, called_once, replace_by_exact)
    return GradientErrors(relative_errors(gradients, exact.weights), outputs)


def gradients_of(
    model: nn.Module,
    batch: Batch,
    prefix: Any,
    loss: Loss,
    trained: Sequence[str],
    watched: Collection[str] = (),
    on_output: OnOutput | None = None,
) -> dict[str, Tensor]:
    """Return each trained layer's weight gradient; ``on_output`` is called with the watched layers' output gradients."""

    def watch(output: Tensor, name: str) -> None:
        if output.requires_grad and on_output:
            output.register_hook(partial(on_output, name))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for name in trained:
            if name in watched:
                stack.callback(watch_output(model.get_submodule(name), partial(watch, name=name)))
        step(model, batch, prefix, loss=loss)
    return take_gradients(model, trained)


def take_gradients(model: nn.Module, trained: Sequence[str]) -> dict[str, Tensor]:
    """Return each trained layer's weight gradient, and leave none in the model."""
    gradients = weight_gradients(model, trained)
    model.zero_grad()
    return gradients


def weight_gradients(model: nn.Module, trained: Iterable[str]) -> dict[str, Tensor]:
    """Return each trained layer's weight gradient."""
    # Not by ``module.weight``, which a parametrization computes anew: then of the first trained parameter behind it.
    weights = {
        name: [p.grad for key, p in model.get_submodule(name).named_parameters() if key != "bias" and p.requires_grad]
        for name in trained
    }
    return {name: found[0] for name, found in weights.items() if found and found[0] is not None}
