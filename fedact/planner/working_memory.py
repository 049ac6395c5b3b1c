"""Bytes that a method works with while it compresses, decodes or takes a weight gradient, from small tensors."""

from collections.abc import Callable, Iterable
from math import ceil, log2, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedact.compression import Method
from fedact.compression.method import Codec, Compressed, State
from fedact.compression.plane import is_product
from fedact.compression.transform.transform import MOST_BITS, Transform
from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import peak
from fedact.planner.stand_in import Geometry, GradientCall

ELEMENTS = 2**15
"""Working memory is measured on so many elements at most, and grows with the number of examples."""
LARGE = 15
"""Powers of two in the elements of a tensor that is not small."""
LEAST_BITS = 0.5
"""Below, the working memory of ``transform`` hardly depends on the bits."""


class WorkingBytes(NamedTuple):
    """The most bytes alive besides a compression's input, and a reconstruction's result."""

    encoding: int
    decoding: int


class Given(NamedTuple):
    """What a weight gradient is added to: a tensor that is there."""

    gradient: Tensor

    def tensor(self) -> Tensor:
        """Return the tensor."""
        return self.gradient

    def add(self, gradient: Tensor) -> None:
        """Add another one."""
        self.gradient.add_(gradient)


class WorkingMemory:
    """The working memory of methods, measured once for every kind of tensor; approximate, for the search of a plan alone.

    none: it is taken to be none, and nothing is measured.
    """

    def __init__(self, none: bool = False) -> None:
        self.none = none
        self._shares: dict[tuple[object, ...], tuple[float, float]] = {}
        self._gradients: dict[tuple[object, ...], int] = {}
        self._channels: dict[tuple[object, ...], int] = {}
        self._stored: dict[tuple[Method, torch.Size], int] = {}
        self._states: dict[tuple[Method, torch.Size], int] = {}

    def stored_bytes(self, method: Method, shape: torch.Size) -> int:
        """Return the most bytes that a method stores of a tensor."""
        if (method, shape) not in self._stored:
            self._stored[method, shape] = method.ceiling.predicted_bytes(shape)
        return self._stored[method, shape]

    def state_bytes(self, method: Method, shape: torch.Size) -> int:
        """Return the most bytes that a method keeps from step to step."""
        if (method, shape) not in self._states:
            self._states[method, shape] = method.ceiling.predicted_state_bytes(shape)
        return self._states[method, shape]

    def bytes(self, method: Method, like: Geometry, itemsize: int) -> WorkingBytes:
        """Return the working memory on a tensor like this."""
        if self.none:
            return WorkingBytes(0, 0)
        method, examples = _rounded_up(method), _few(like)
        # What is coded example by example has the same share of any tensor that is not small.
        scale = (examples * prod(like.shape[1:])).bit_length()
        key = (method, min(scale, LARGE)) if method.traits.per_example else (method, *_each(like), examples)
        if key not in self._shares:
            self._shares[key] = _measured_shares(method, like.noise(examples))
        size = prod(like.shape) * itemsize
        return WorkingBytes(*(round(share * size) for share in self._shares[key]))

    def channels_bytes(self, method: Method, like: Geometry, channels: range) -> int:
        """Return what a method works with while it decodes some channels of a tensor like this, besides these."""
        if self.none:
            return 0
        method, examples = _rounded_up(method), _few(like)
        key = (method, *_each(like), channels, examples)
        if key not in self._channels:
            compressed = method.compress(like.noise(examples), method.start(0))
            given = [*compressed.tensors, *compressed.state.tensors]
            most, result = _most_bytes(lambda: method.reconstruct_channels(compressed, channels), given)
            self._channels[key] = max(0, most - result.untyped_storage().nbytes())
        return self._channels[key] * like.shape[0] // examples

    def gradient_bytes(self, method: Method, like: Geometry, call: GradientCall) -> int:
        """Return what a method that has a weight gradient of its own works with, besides the gradient itself.

        like: the input.
        """

        def gradient(compressed: Compressed, grad_output: Tensor) -> Tensor:
            return method.weight_gradient(compressed, grad_output, call.weight, call.operation)

        def addition(compressed: Compressed, grad_output: Tensor) -> None:
            method.add_weight_gradient(Given(total), compressed, grad_output, call.weight, call.operation)

        if not call.added:
            return self._gradient_bytes(method, like, call, gradient)
        if is_product(call.operation, call.weight) and type(method).add_weight_gradient is not Codec.add_weight_gradient:
            total = torch.zeros_like(call.weight)
            return self._gradient_bytes(method, like, call, addition, total)
        # What is added to a gradient is a second tensor meanwhile.
        return self._gradient_bytes(method, like, call, gradient) + call.weight.nbytes

    def input_gradient_bytes(self, method: Method, like: Geometry, call: GradientCall) -> int:
        """Return what a method that has an input gradient of its own works with, besides the gradient itself."""

        def gradient(_: Compressed, grad_output: Tensor) -> Tensor:
            return method.input_gradient((len(grad_output), *like.shape[1:]), grad_output, call.weight, call.operation)

        return self._gradient_bytes(method, like, call, gradient)

    def _gradient_bytes(
        self,
        method: Method,
        like: Geometry,
        call: GradientCall,
        gradient: Callable[[Compressed, Tensor], Tensor | None],
        *given: Tensor,
    ) -> int:
        if self.none:
            return 0
        method, examples = _rounded_up(method), _few(like)
        kind = gradient.__qualname__
        key = (kind, method, *_each(like), *_each(call.grad_output), call.weight.shape, call.operation, examples)
        if key not in self._gradients:
            x, grad_output = like.noise(examples), call.grad_output.noise(examples)
            compressed = method.compress(x, method.start(0))
            before = [*compressed.tensors, *compressed.state.tensors, grad_output, call.weight, *given]
            most, result = _most_bytes(lambda: gradient(compressed, grad_output), before)
            self._gradients[key] = most if result is None else max(0, most - result.untyped_storage().nbytes())
        return self._gradients[key] * like.shape[0] // examples


def has_own_input_gradient(method: Method) -> bool:
    """Tell whether a method takes the input gradient in another way than the plain layer."""
    return type(method).input_gradient is not Codec.input_gradient


def _rounded_up(method: Method) -> Method:
    """Return a method with hardly less working memory, one for many settings."""
    method = method.ceiling
    if isinstance(method, Transform):
        return Transform(bits=min(MOST_BITS, 2.0 ** ceil(log2(max(LEAST_BITS, method.bits or MOST_BITS)))))
    return method


def _few(like: Geometry) -> int:
    """Return how many examples to measure on."""
    return max(1, min(like.shape[0], ELEMENTS // max(1, prod(like.shape[1:]))))


def _each(like: Geometry) -> tuple[torch.Size, tuple[int, ...]]:
    """Return what a tensor has in common with those of more or fewer examples."""
    return like.shape[1:], like.stride


def _measured_shares(method: Method, x: Tensor) -> tuple[float, float]:
    """Return the working memory of compressing a tensor and of reconstructing it, relative to its bytes."""
    encoding = decoding = 0
    for tensor, start in method.worst_cases(x) or [(x, method.start(0))]:
        states, compressed = [start], None
        while states:
            state = states.pop()
            used, compressed = _most_bytes(lambda: method.compress(tensor, state), [tensor, *state.tensors])  # noqa: B023
            if state is start and compressed.state.tensors and not method.worst_cases(x):
                states.append(State(compressed.state.tensors, compressed.state.metadata))
            encoding = max(encoding, used)
        assert compressed is not None
        given = [*compressed.tensors, *compressed.state.tensors]
        used, result = _most_bytes(lambda: method.reconstruct(compressed), given)  # noqa: B023
        decoding = max(decoding, used - result.untyped_storage().nbytes())
    return encoding / x.nbytes, max(0, decoding) / x.nbytes


def _most_bytes(action: Callable[[], Any], given: Iterable[Tensor]) -> tuple[int, Any]:
    """Return the most bytes alive while an action runs, besides the given tensors, and what it returns."""
    ledger = Ledger(given)
    with ledger, torch.no_grad():
        result = action()
    most, _ = peak((life.birth, life.death, life.size) for life in ledger.lifetimes if life.birth)
    return most, result
