"""Bytes at equal gradient cosine: the input of one convolution compressed, everything else exact."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from fedact.compression import Method, at, family, method_name
from fedact.compression.operations import Convolution
from fedact.compression.temporal import Convolution1d
from fedact.config.errors import ConfigError
from fedact.measure.gradient_error import weight_error
from fedact.measure.memory import stored_bytes
from fedact.measure.step import Batch, shallow_copy
from fedact.models.tasks import task_loss
from fedact.nn.layers import LeanMultiheadAttention, batch_of, known_attention, lean_class, watch_output, weight_name
from fedact.nn.restoration import uninstall
from fedact.nn.surgery import body_layers, count_text

Case = tuple[str, float]
"""A layer and a cosine."""
COSINES = (0.95, 0.98, 0.99)
LARGE = 32_000
"""Bytes of published HOSVD above which a saving matters; below, a method must only not need more."""
BISECTIONS = 5
PUBLISHED = "hosvd"
BASELINES = ("hosvd:bits=8", PUBLISHED)
"""What bytes are relative to: HOSVD in 8 bits, the honest comparison, before HOSVD as published."""


@dataclass(frozen=True, eq=False)
class CapturedConvolution:
    """A convolution's input x and output gradient on a real batch, and its exact weight gradient."""

    name: str
    x: Tensor
    grad_output: Tensor
    weight: Tensor
    operation: Convolution
    exact: Tensor


@dataclass(frozen=True)
class LeastBytes:
    """The least bytes measured at which a family reaches a cosine with the exact weight gradient of one layer.

    wanted: the cosine asked for; cosine: the one reached. method: with its settings; None where no setting reaches it, so
    that the tensor itself must be stored. bytes: of what is stored and of the method's state. exact_bytes: of the tensor.
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
    """A family's bytes relative to a baseline's at the same cosine; None where there is nothing to compare.

    typical: the geometric mean over layers and cosines where published HOSVD needs more than LARGE bytes; worst: the largest
    of the others. more_in: in how many of the cases it needs more bytes than the baseline.
    """

    family: str
    baseline: str
    typical: float | None
    worst: float | None
    more_in: int
    cases: int


def convolutions_to_compare(model: nn.Module, last: int, every: int) -> list[str]:
    """Return the names of the last convolutions, and of every so many-th before them; every 0: of no other.

    Raises ConfigError where the model has fewer.
    """
    names = body_layers(model)
    if not 1 <= last <= len(names):
        raise ConfigError(f"the model has {count_text(model)}: --layers is at least 1 and at most that, not {last}")
    before = names[: len(names) - last]
    return ([*reversed(before[-every::-every])] if every else []) + names[-last:]


def capture(model: nn.Module, batch: Batch, names: Sequence[str]) -> list[CapturedConvolution]:
    """Return the named layers as they are in one exact step of the whole model, batch norm frozen; linear ones as 1 x 1.

    A layer that is called several times is captured at its first call.
    """
    plain = uninstall(shallow_copy(model)).eval().requires_grad_(False)
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    seen = set[str]()

    def keep(module: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        if name not in inputs:
            inputs[name] = batch_of(module, args[0]).detach().clone()

    def follow(output: Tensor, name: str) -> None:
        if name not in seen:
            seen.add(name)
            output.register_hook(partial(gradients.__setitem__, name))  # type: ignore[no-untyped-call]

    for module in plain.modules():
        # The plain ones show nobody what they project.
        if type(module) is nn.MultiheadAttention:
            module.__class__ = LeanMultiheadAttention
        elif known_attention(module):
            kind: Any = type(module)
            module.__class__ = lean_class(kind)
    for name in names:
        layer = plain.get_submodule(name)
        layer.register_forward_pre_hook(partial(keep, name=name))
        watch_output(layer, partial(follow, name=name))
    task_loss(plain(batch[0].detach().requires_grad_()), batch[1]).backward()  # type: ignore[no-untyped-call]
    captured = []
    for name in names:
        module, x, grad_output = plain.get_submodule(name), inputs[name], gradients[name]
        weight = getattr(module, weight_name(module)).detach()
        if isinstance(module, nn.Linear | nn.MultiheadAttention):
            # It is a 1 x 1 convolution over its rows.
            x, grad_output = (each.movedim(-1, 1).reshape(len(each), each.shape[-1], -1, 1) for each in (x, grad_output))
            operation, weight = Convolution((1, 1), (0, 0), (1, 1), 1), weight[:, :, None, None]
        elif isinstance(module, nn.Conv1d):
            x, grad_output, weight = (tensor.unsqueeze(2) for tensor in (x, grad_output, weight))
            operation = Convolution1d.of(module).plane
        else:
            assert isinstance(module, nn.Conv2d)
            operation = Convolution.of(module)
        exact = operation.weight_gradient(x, grad_output, weight)
        captured.append(CapturedConvolution(name, x, grad_output, weight, operation, exact))
    return captured


def least_bytes(
    captured: CapturedConvolution, base: Method, cosines: Sequence[float] = COSINES, seed: int = 0
) -> list[LeastBytes]:
    """Return the least bytes at which a family reaches each cosine, of the settings tried.

    base: the family, with settings that are not swept. The values of its sweep are tried upwards until one reaches the
    cosine; where they are floats, the interval before it is halved BISECTIONS times. Every setting is measured, none
    interpolated.
    """
    measured: dict[Method, tuple[int, float]] = {}
    exact_bytes, results = captured.x.nbytes, []

    def cosine(value: float) -> float:
        method = at(base, value)
        if method not in measured:
            measured[method] = _measure(captured, method, seed)
        return measured[method][1]

    for wanted in cosines:
        _search(base.traits.sweep.values, wanted, cosine)
        sufficient = {method: found for method, found in measured.items() if found[1] >= wanted}
        method = min(sufficient, key=lambda method: sufficient[method][0], default=None)
        size, reached = sufficient[method] if method else (exact_bytes, 1.0)
        name = method_name(method) if method else None
        # More bytes than the tensor's own buy nothing.
        size = min(size, exact_bytes)
        results.append(LeastBytes(captured.name, method_name(family(base)), wanted, name, size, reached, exact_bytes))
    return results


def _search(values: Sequence[float], wanted: float, cosine: Callable[[float], float]) -> None:
    """Call ``cosine`` with values of a setting near the least that reaches the wanted cosine."""
    low: float = 0
    for high in values:
        if cosine(high) >= wanted:
            break
        low = high
    else:
        return
    for _ in range(BISECTIONS if isinstance(high, float) else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if cosine(middle) >= wanted else (middle, high)


def _measure(captured: CapturedConvolution, method: Method, seed: int) -> tuple[int, float]:
    """Return the bytes stored in a first step, state included, and the weight gradient's cosine with the exact one."""
    compressed = method.compress(captured.x, method.start(seed))
    gradient = method.weight_gradient(compressed, captured.grad_output, captured.weight, captured.operation)
    cosine = weight_error([gradient], captured.exact).cosine
    return stored_bytes((*compressed.tensors, *compressed.state.tensors)), cosine


def bytes_ratios(results: Sequence[LeastBytes], baselines: Sequence[str] = BASELINES) -> list[FamilyRatios]:
    """Return each family's bytes relative to each baseline's, the first baseline's first; published HOSVD must be there."""
    by_family: dict[str, dict[Case, int]] = {}
    for each in results:
        by_family.setdefault(each.family, {})[each.layer, each.wanted] = each.bytes
    large = {case for case, size in by_family[PUBLISHED].items() if size > LARGE}
    return [
        _ratios(name, sizes, baseline, by_family[baseline], large)
        for baseline in baselines
        for name, sizes in by_family.items()
    ]


def _ratios(
    name: str, sizes: Mapping[Case, int], baseline: str, baseline_sizes: Mapping[Case, int], large: Container[Case]
) -> FamilyRatios:
    ratios = {case: size / baseline_sizes[case] for case, size in sizes.items()}
    logarithms = [log(ratio) for case, ratio in ratios.items() if case in large]
    worst = max((ratio for case, ratio in ratios.items() if case not in large), default=None)
    more_in = sum(ratio > 1 for ratio in ratios.values())
    return FamilyRatios(name, baseline, exp(fmean(logarithms)) if logarithms else None, worst, more_in, len(ratios))
