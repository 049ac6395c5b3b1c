"""A codec that stores next to nothing and notes when it is called, so that any other's bytes can be put in its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.accumulation import Total, add_weight_gradient, is_large
from fedact.compression.exact import IDENTITY
from fedact.compression.method import NO_STATE
from fedact.compression.operations import Operation
from fedact.measure.ledger import Ledger
from fedact.measure.lifetimes import Lifetime


class Geometry(NamedTuple):
    """A tensor's shape, and how it lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]

    def noise(self, examples: int) -> Tensor:
        """Return a random tensor of fewer examples that lies in memory like this one, repeated where it is expanded."""
        size = [1 if step == 0 else count for count, step in zip(self.shape, self.stride, strict=True)]
        size[0] = min(size[0], examples)
        order = sorted(range(len(size)), key=lambda place: -self.stride[place])
        noise = torch.empty_permuted(size, order).normal_(generator=torch.Generator().manual_seed(0))
        return noise.expand(examples, *self.shape[1:])


class Encoding(NamedTuple):
    """One compression: whose, when it was done (in operations), and the storages of its input and of what is stored."""

    layer: str
    moment: int
    source: Lifetime
    stored: Lifetime
    like: Geometry


class Decoding(NamedTuple):
    """One reconstruction: whose, from when to when (in operations), and its result's storage; channels: None for all."""

    layer: str
    start: int
    stop: int
    result: Lifetime
    channels: range | None = None


class GradientCall(NamedTuple):
    """One gradient that a codec computes itself: whose, from when to when, of what, and whether it is added to another.

    result: a large weight's gradient that is new, where a codec without one of its own adds to what there is: never one that
    channels are multiplied by (of a linear layer, a 1 x 1 convolution), which every codec is asked to add.
    """

    layer: str
    start: int
    stop: int
    grad_output: Geometry
    weight: Tensor
    operation: Operation
    added: bool = False
    result: Lifetime | None = None


@dataclass(eq=False)
class Calls:
    """The calls of all stand-ins in a step that a ledger follows."""

    ledger: Ledger | None = None
    encodings: list[Encoding] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)
    gradients: list[GradientCall] = field(default_factory=list)
    input_gradients: list[GradientCall] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class StandIn(Method):
    """Stores one byte of the named layer's input, in whose place the backward pass sees zeros.

    by_channels: whether it decodes some channels without the others.
    """

    traits: ClassVar[Traits] = replace(IDENTITY, source="none: for measuring", keeps_input=False)

    layer: str
    calls: Calls
    by_channels: bool = False

    @property
    def reconstructs_channels(self) -> bool:
        return self.by_channels

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        stored = torch.empty(1, dtype=torch.uint8, device=x.device)
        if ledger := self.calls.ledger:
            lives = ledger.find(x), ledger.find(stored)
            self.calls.encodings.append(Encoding(self.layer, ledger.clock, *lives, Geometry(x.shape, x.stride())))
        return Compressed((stored,), (x.shape, x.stride(), x.dtype, x.device))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, stride, dtype, device = compressed.metadata
        start = self._now()
        # A view's strides would make a storage as large as the whole.
        dense = torch.empty_strided(shape, stride, dtype=dtype, device="meta").untyped_storage().nbytes()
        fits = dense <= dtype.itemsize * shape.numel()
        zeros = torch.empty_strided(shape, stride, dtype=dtype, device=device) if fits else torch.empty(shape, dtype=dtype)
        zeros.zero_()
        if ledger := self.calls.ledger:
            self.calls.decodings.append(Decoding(self.layer, start, ledger.clock, ledger.find(zeros)))
        return zeros

    def reconstruct_channels(self, compressed: Compressed, channels: range) -> Tensor:
        shape, stride, dtype, device = compressed.metadata
        start = self._now()
        order = sorted(range(len(shape)), key=lambda place: -stride[place])
        some = (shape[0], len(channels), *shape[2:])
        zeros = torch.empty_permuted(some, order, dtype=dtype, device=device).zero_()
        if ledger := self.calls.ledger:
            self.calls.decodings.append(Decoding(self.layer, start, ledger.clock, ledger.find(zeros), channels))
        return zeros

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return 1

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        start = self._now()
        gradient = super().weight_gradient(compressed, grad_output, weight, operation)
        call, large = (
            self._call(start, grad_output, weight, operation),
            is_large(weight, compressed.metadata[0], grad_output),
        )
        result = self.calls.ledger.find(gradient) if large and weight.is_leaf and self.calls.ledger else None
        self.calls.gradients.append(call._replace(result=result))
        return gradient

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        start = self._now()
        add_weight_gradient(total, operation, self.reconstruct(compressed), grad_output, weight)
        self.calls.gradients.append(self._call(start, grad_output, weight, operation, added=True))

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        start = self._now()
        gradient = super().input_gradient(shape, grad_output, weight, operation)
        self.calls.input_gradients.append(self._call(start, grad_output, weight, operation))
        return gradient

    def _call(
        self, start: int, grad_output: Tensor, weight: Tensor, operation: Operation, added: bool = False
    ) -> GradientCall:
        like = Geometry(grad_output.shape, grad_output.stride())
        return GradientCall(self.layer, start, self._now(), like, weight.detach(), operation, added)

    def _now(self) -> int:
        return self.calls.ledger.clock if self.calls.ledger else 0


class Lossy(NamedTuple):
    """What of a method that keeps no input a step's shapes and lifetimes follow from.

    by_channels: whether a block in streams decodes some of its input's channels without the others.
    """

    recompute: int
    by_channels: bool = False


Structure = tuple[tuple[str, Method | Lossy], ...]
"""What of the methods a step's shapes and lifetimes follow from: by layer, or the methods themselves if all keep inputs."""


def structure_of(methods: Mapping[str, Method], in_streams: bool = False) -> Structure:
    """Return what of a step's methods its shapes and lifetimes follow from; in_streams: whether it has blocks in streams."""
    lossy = [method for method in methods.values() if not method.traits.keeps_input]
    if not lossy:
        return tuple(sorted(methods.items(), key=itemgetter(0)))
    # What is kept decodes nothing: it goes with the others.
    by_channels = in_streams and any(method.reconstructs_channels for method in lossy)

    def of(method: Method) -> Lossy:
        return Lossy(method.recompute, by_channels and (method.traits.keeps_input or method.reconstructs_channels))

    return tuple((name, of(methods[name])) for name in sorted(methods))
