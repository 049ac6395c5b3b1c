"""The bytes that a method needs for a gradient of a given cosine: the input of one convolution, everything else exact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from statistics import fmean

from torch import Tensor, nn

from fedact.compression import Method, at, family, method_name
from fedact.compression.operations import Convolution
from fedact.config.errors import ConfigError
from fedact.measure.gradient_error import weight_error
from fedact.measure.memory import stored_bytes
from fedact.measure.step import Batch, shallow_copy
from fedact.models.tasks import task_loss
from fedact.nn.surgery import convolutions, restore

COSINES = (0.95, 0.98, 0.99)
LARGE = 32_000
"""Bytes of published HOSVD above which a saving matters; below, it must only not be a loss."""
BISECTIONS = 5
BASELINE = "hosvd"
"""Published HOSVD."""


@dataclass(frozen=True, eq=False)
class CapturedConvolution:
    """A convolution's input and output gradient on a real batch, and its exact weight gradient."""

    name: str
    x: Tensor
    grad_output: Tensor
    weight: Tensor
    operation: Convolution
    exact: Tensor


@dataclass(frozen=True)
class LeastBytes:
    """The least bytes measured at which a family reaches the cosine with the exact gradient of one layer.

    method: with its settings; None where no value of the setting is enough, so that the tensor itself must be kept.
    bytes: of what is kept and of the method's state. exact_bytes: of the tensor.
    """

    layer: str
    family: str
    wanted: float
    method: str | None
    bytes: int
    cosine: float
    exact_bytes: int


@dataclass(frozen=True)
class FamilyRatios:
    """A family's bytes relative to published HOSVD's at the same cosine; None where there is nothing to compare.

    typical: the geometric mean over layers and cosines where HOSVD needs more than LARGE bytes; worst: of the others.
    """

    family: str
    typical: float | None
    worst: float | None


def convolutions_to_compare(model: nn.Module, last: int, every: int) -> list[str]:
    """Return the names of the last convolutions, and of every so many-th before them; every 0: of no other.

    Raises ConfigError where the model has fewer convolutions.
    """
    names = convolutions(model)
    if not 1 <= last <= len(names):
        raise ConfigError(f"the model has {len(names)} convolutions: --layers is at least 1 and at most that, not {last}")
    before = names[: len(names) - last]
    return ([*reversed(before[-every::-every])] if every else []) + names[-last:]


def capture(model: nn.Module, batch: Batch, names: Sequence[str]) -> list[CapturedConvolution]:
    """Return what the named convolutions see in one exact step of the whole model, batch norm frozen.

    A layer that is called several times is taken as it was called first.
    """
    plain = restore(shallow_copy(model)).eval().requires_grad_(False)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    for name in names:
        plain.get_submodule(name).register_forward_hook(_keeps(name, inputs, gradients))
    task_loss(plain(batch[0].detach().requires_grad_()), batch[1]).backward()  # type: ignore[no-untyped-call]
    return [_captured(name, plain.get_submodule(name), inputs[name], gradients[name]) for name in names]


def _keeps(name: str, inputs: dict[str, Tensor], gradients: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if name not in inputs:
            inputs[name] = args[0].detach().clone()
            output.register_hook(partial(gradients.__setitem__, name))  # type: ignore[no-untyped-call]

    return hook


def _captured(name: str, module: nn.Module, x: Tensor, grad_output: Tensor) -> CapturedConvolution:
    assert isinstance(module, nn.Conv2d)
    operation, weight = Convolution.of(module), module.weight.detach()
    return CapturedConvolution(name, x, grad_output, weight, operation, operation.weight_gradient(x, grad_output, weight))


def least_bytes(
    captured: CapturedConvolution, base: Method, cosines: Sequence[float] = COSINES, seed: int = 0
) -> list[LeastBytes]:
    """Return the least bytes at which a family reaches each cosine, of the settings tried.

    The values of its sweep are tried upwards until one is enough; where they are floats, the interval before it is halved
    BISECTIONS times. Every setting is measured, none interpolated.
    """
    measured: dict[Method, tuple[int, float]] = {}

    def cosine(method: Method) -> float:
        if method not in measured:
            measured[method] = _measure(captured, method, seed)
        return measured[method][1]

    return [_least(captured, base, wanted, cosine, measured) for wanted in cosines]


def _least(
    captured: CapturedConvolution,
    base: Method,
    wanted: float,
    cosine: Callable[[Method], float],
    measured: dict[Method, tuple[int, float]],
) -> LeastBytes:
    _search(base, wanted, cosine)
    enough = {method: found for method, found in measured.items() if found[1] >= wanted}
    method = min(enough, key=lambda method: enough[method][0], default=None)
    size, reached = enough[method] if method else (captured.x.nbytes, 1.0)
    # More bytes than the tensor's own buy nothing.
    size = min(size, captured.x.nbytes)
    name = method_name(method) if method else None
    return LeastBytes(captured.name, method_name(family(base)), wanted, name, size, reached, captured.x.nbytes)


def _search(base: Method, wanted: float, cosine: Callable[[Method], float]) -> None:
    """Try the base's settings near the least that is enough."""
    low: float = 0
    for high in base.traits.sweep.values:
        if cosine(at(base, high)) >= wanted:
            break
        low = high
    else:
        return
    for _ in range(BISECTIONS if isinstance(high, float) else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if cosine(at(base, middle)) >= wanted else (middle, high)


def _measure(captured: CapturedConvolution, method: Method, seed: int) -> tuple[int, float]:
    """Return the bytes kept in a first step, state included, and the weight gradient's cosine with the exact one."""
    compressed = method.compress(captured.x, method.start(seed))
    ours = method.weight_gradient(compressed, captured.grad_output, captured.weight, captured.operation)
    return stored_bytes((*compressed.tensors, *compressed.state.tensors)), weight_error([ours], captured.exact).cosine


def bytes_ratios(found: Sequence[LeastBytes], baseline: str = BASELINE) -> list[FamilyRatios]:
    """Return each family's bytes relative to the baseline's."""
    of = {(each.layer, each.wanted): each.bytes for each in found if each.family == baseline}
    result = []
    for name in dict.fromkeys(each.family for each in found):
        own = [(each.bytes, of[each.layer, each.wanted]) for each in found if each.family == name]
        large = [log(ours / theirs) for ours, theirs in own if theirs > LARGE]
        small = [ours / theirs for ours, theirs in own if theirs <= LARGE]
        result.append(FamilyRatios(name, exp(fmean(large)) if large else None, max(small, default=None)))
    return result
