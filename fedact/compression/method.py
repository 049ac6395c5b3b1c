"""What a method is: a codec for a saved activation, with the traits that planner and figures ask for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from fedact.compression.accumulation import Total, add_weight_gradient
from fedact.compression.operations import Operation
from fedact.compression.traits import Sweep as Sweep
from fedact.compression.traits import Traits as Traits


class State(NamedTuple):
    """Per-layer codec state from step to step: tensors, and what is no tensor (ranks)."""

    tensors: tuple[Tensor, ...] = ()
    metadata: Any = None


NO_STATE = State()

SERIES, PICTURES = 3, 4
"""Dimensions of a batch of series (or tokens), and of pictures."""

Variance = Annotated[float, Field(gt=0, le=1)]
"""A share of a tensor's variance (the sum of its squares)."""
Convolutions = Annotated[int, Field(ge=0)]
"""A number of convolutions."""
Count = Annotated[int, Field(ge=1)]
"""A number of things, at least one."""


class Compressed(NamedTuple):
    """What is saved in a tensor's place: tensors, each alone in its storage, and what is no tensor (shapes, ranks).

    state: what the next step starts from; ``reconstruct`` may read it, so it lives as long as the tensors.
    """

    tensors: tuple[Tensor, ...]
    metadata: Any = None
    state: State = NO_STATE


class Codec(ABC):
    """What a layer needs: ``reconstruct(compress(x))`` stands in for x in the weight gradient.

    The gradients default to those of the reconstruction; a codec may bring faster ones with the same value.
    A codec is a value: what changes from step to step is a State that the layer hands in and takes back.
    """

    @abstractmethod
    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        """Return what to store of x: (batch, channels, *positions), with as many dimensions of positions as there are.

        state: what the last step on this layer returned, or ``start(seed)``. Raises FloatingPointError where x holds a NaN
        or an infinity that the codec would have to turn into numbers.
        """

    @abstractmethod
    def reconstruct(self, compressed: Compressed) -> Tensor:
        """Return the tensor of x's shape and type that the backward pass sees."""

    def reconstruct_channels(self, compressed: Compressed, channels: range) -> Tensor:
        """Return some consecutive channels of ``reconstruct``; a codec that need not decode the others says how."""
        return self.reconstruct(compressed)[:, channels.start : channels.stop]

    @property
    def reconstructs_channels(self) -> bool:
        """Whether it decodes some channels without the others."""
        return type(self).reconstruct_channels is not Codec.reconstruct_channels

    @abstractmethod
    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        """Return the bytes that ``compress`` stores for a tensor in a first step; for a shape (in float32), the most."""

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        """Return the bytes of the state that ``compress`` returns for a tensor; for a shape (in float32), the most."""
        return 0

    def start(self, seed: int) -> State:
        """Return the state before the first step; what is random in a codec follows from the seed."""
        return NO_STATE

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's weight, in the weight's shape; grad_output: its channels are second too."""
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        """Add the gradient of the operation's weight to a total of the weight's shape.

        A method with a weight gradient of its own adds that, a second tensor meanwhile, unless it says here how not to.
        """
        if type(self).weight_gradient is Codec.weight_gradient:
            add_weight_gradient(total, operation, self.reconstruct(compressed), grad_output, weight)
            return
        gradient = self.weight_gradient(compressed, grad_output, weight, operation)
        # Not by ``add``: of a method of the user's own something else may hold it.
        total.tensor().add_(gradient.view_as(weight))

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's input, of this shape, which needs no activation."""
        return operation.input_gradient(shape, grad_output, weight)

    def output(self, compressed: Compressed, weight: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        """Return the operation's output for the reconstruction, for layers whose inputs are rematerialized from it."""
        return operation.forward(self.reconstruct(compressed).to(weight.dtype), weight, bias)

    def stored_elements(self, tensor: Tensor) -> int:
        """Return how many elements a stored tensor stands for: several a byte where their bits are packed."""
        return tensor.numel()


@dataclass(frozen=True)
class Method(Codec):
    """A codec whose fields are its settings, with what the planner needs to choose among settings.

    derive: the recompute that goes with it, whatever the run's (see ``recompute``); None where the run's does.
    """

    traits: ClassVar[Traits]

    derive: Convolutions | None = field(default=None, kw_only=True)

    @property
    def recompute(self) -> int:
        """How many convolutions before a layer another saved input may be, for its own to be made again from that one."""
        return self.derive or 0

    def recomputing(self, convolutions: int) -> Self:
        """Return the method with this recompute, or as it is where it was told another, or knows none."""
        return self if self.derive is not None or not convolutions else replace(self, derive=convolutions)

    @property
    def codec(self) -> Self:
        """The method without a recompute of its own."""
        return self if self.derive is None else replace(self, derive=None)

    @property
    def segment(self) -> int:
        """How many children of a Sequential are recomputed together in the backward pass; 0 recomputes nothing."""
        return 0

    def for_dimensions(self, dimensions: int) -> "Method":
        """Return the method for an input with so many dimensions: batch, channels and those of positions, none in a head."""
        return self

    @property
    def fixed_size(self) -> bool:
        """Whether tensors of one shape always take the same bytes."""
        return True

    def has_fixed_bytes(self, scope: str) -> bool:
        """Tell whether a step's bytes of this scope ("saved" or "peak") depend on shapes alone."""
        return self.fixed_size and (scope == "saved" or self.traits.fixed_workspace)

    @property
    def ceiling(self) -> "Method":
        """The method that always stores the most bytes that this one may."""
        return self

    @property
    def has_free_settings(self) -> bool:
        """Whether a budget chooses its settings, among ``levels`` of its ``alternatives``."""
        return False

    @property
    def alternatives(self) -> "list[Method]":
        """The methods of which a budget chooses one for all tensors: settings that have no levels, the simplest first."""
        return [self]

    def spectra(self, x: Tensor) -> Any:
        """Return what ``levels`` and ``reconstructions`` of this method and its alternatives start from, for a tensor."""
        return None

    def levels(self, x: Tensor, spectra: Any = None) -> dict[float, "Method"]:
        """Return this method with settings (or caps) fixed for tensors like x, by level, the least lossy first.

        Every tensor gets the same levels; given settings stay, and leave one level where there is nothing to choose.
        spectra: what ``spectra`` returns for x, to save the time it takes.
        """
        return {1.0: self}

    def reconstructions(self, x: Tensor, methods: "Sequence[Method]", spectra: Any = None) -> "Iterator[Tensor]":
        """Yield what each of some methods makes of x in a first step: of ``levels`` of this one, in their order."""
        return (method.reconstruct(method.compress(x, method.start(0))) for method in methods)

    def between(self, other: "Method", share: float) -> "Method | None":
        """Return the method at a share (0 to 1) of the way to another level, None where there is none between."""
        return None

    def worst_cases(self, x: Tensor) -> list[tuple[Tensor, State]]:
        """Return inputs like x, with states, of which one takes about as much working memory as any ever does."""
        return []


def part_way(one: float, other: float, share: float) -> float:
    """Return the number that is a share (0 to 1) of the way from one to another, by ratio, in two digits.

    >>> part_way(0.5, 0.125, 0.5)
    0.25
    """
    return float(f"{one ** (1 - share) * other**share:.2g}")


def item_size(x: Tensor | Sequence[int]) -> int:
    """Return the bytes of one element; a bare shape means float32."""
    return x.element_size() if isinstance(x, Tensor) else torch.float32.itemsize


def shape_of(x: Tensor | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a tensor, or of a shape itself."""
    return tuple(x.shape if isinstance(x, Tensor) else x)


def owned(x: Tensor) -> Tensor:
    """Return x, or a copy where x is a view of a larger storage, which it would pin; an expanded one's is smaller than x."""
    return x if x.untyped_storage().nbytes() <= x.nbytes else x.clone()


def computable(x: Tensor) -> Tensor:
    """Return x in a type that has enough digits for linear algebra: half precision has no eigensolver and too few."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
