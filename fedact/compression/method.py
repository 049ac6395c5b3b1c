"""What a method is: a codec for a tensor kept for the backward pass."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedact.compression.operations import Operation
from fedact.config.errors import ConfigError


class State(NamedTuple):
    """What a method keeps of one layer from step to step: the tensors, and what is no tensor (ranks)."""

    tensors: tuple[Tensor, ...] = ()
    about: Any = None


NO_STATE = State()


class Compressed(NamedTuple):
    """What is kept in a tensor's place: the tensors, each alone in its storage, and what is no tensor (shapes, ranks).

    state: what the next step starts from; ``reconstruct`` may read it, so it is kept as long as the tensors.
    """

    tensors: tuple[Tensor, ...]
    about: Any = None
    state: State = NO_STATE


@dataclass(frozen=True)
class Method(ABC):
    """A codec: ``reconstruct(compress(x))`` stands in for x in the weight gradient.

    The gradients default to those of the reconstruction; a method may bring faster ones with the same value.
    A method is a value: what changes from step to step is a State that the layer hands in and takes back.
    """

    source: ClassVar[str]
    published: ClassVar[str] = ""
    """The settings of the source's headline figures (for every decomposition the explained variance of HOSVD's)."""
    sweep: ClassVar[tuple[str, tuple[float, ...]]] = ("", ())
    """The setting that trades bytes for error, and values worth drawing, fewest bytes first; between floats any goes."""
    variants: ClassVar[tuple[str, ...]] = ("",)
    """Other settings that make a curve of their own."""
    lean: ClassVar[bool] = True
    """Whether the layers around it drop what an exact gradient does not need (batch norm's input, ReLU's copies)."""
    keeps_input: ClassVar[bool] = False
    """Whether the very input is kept, so that the activation before it can read its mask off it."""
    exact_input_gradient: ClassVar[bool] = True
    """Whether the input gradient is the plain layer's."""

    same_work: ClassVar[bool] = True
    """Whether a step's working memory depends on shapes alone, where its stored bytes do."""
    hard: ClassVar[int] = 0
    """How many ``hard_cases`` there are."""
    reads_state: ClassVar[bool] = False
    """Whether ``reconstruct`` needs the state too."""
    calibrated: ClassVar[bool] = False
    """Whether the state is found once, by the server, and sent to every client."""
    by_example: ClassVar[bool] = False
    """Whether every example is kept as if it were alone: a gradient's error is then much the same in any micro-batch."""
    seconds: ClassVar[tuple[float, float]] = (2e-3, 2e-8)
    """About what keeping and making again a tensor takes, and one element of it, on two cores: breaks ties between plans."""

    @abstractmethod
    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        """Return what to keep of x, a tensor of any shape whose first dimension is the batch.

        state: what the last step on this layer returned, or ``start(seed)``. Raises FloatingPointError where x holds a NaN
        or an infinity that the method would have to turn into numbers.
        """

    @abstractmethod
    def reconstruct(self, compressed: Compressed) -> Tensor:
        """Return the tensor of x's shape and type that the backward pass sees."""

    @abstractmethod
    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        """Return the bytes that ``compress`` stores for a tensor in a first step; for a shape (in float32), the most."""

    def predicted_state_bytes(self, kept: Tensor | Sequence[int]) -> int:
        """Return the bytes of the state that ``compress`` hands on, in the same way."""
        return 0

    def hard_cases(self, x: Tensor) -> list[tuple[Tensor, State]]:
        """Return inputs like x, with states, of which one takes about as much working memory as any ever does."""
        return []

    def start(self, seed: int) -> State:
        """Return the state before the first step; what is random in a method follows from the seed."""
        return NO_STATE

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's weight."""
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's input, which needs no activation."""
        return operation.input_gradient(shape, grad_output, weight)

    def stored_elements(self, tensor: Tensor) -> int:
        """Return how many elements a kept tensor stands for: several a byte where their bits are packed."""
        return tensor.numel()

    def levels(self, x: Tensor) -> dict[float, "Method"]:
        """Return this method with its settings (or its caps) fixed for tensors like x, by level, the gentlest first.

        Every tensor gets the same levels; given settings are kept, and leave one level where there is nothing to choose.
        """
        return {1.0: self}

    @property
    def free(self) -> bool:
        """Whether its settings are for a budget to choose, among its levels."""
        return False

    def between(self, other: "Method", share: float) -> "Method | None":
        """Return the method at a share of the way to another level, None where there is none between."""
        return None

    def for_dimensions(self, dimensions: int) -> "Method":
        """Return the method for a kept tensor with so many dimensions: 4 before a convolution, 2 before a linear layer."""
        return self

    @property
    def fixed(self) -> bool:
        """Whether tensors of one shape always take the same bytes."""
        return True

    @property
    def ceiling(self) -> "Method":
        """The method that always stores as much as this one ever does."""
        return self

    derive = 0
    """How many convolutions before a layer another kept input may be, for its own to be made again from that one."""

    @property
    def segment(self) -> int:
        """How many children of a Sequential are recomputed together in the backward pass; 0 recomputes nothing."""
        return 0


def choose(method: str, setting: str, value: object, allowed: Collection[object]) -> None:
    """Raise ConfigError unless the setting's value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{method}: {setting} is one of {', '.join(map(str, allowed))}, not {value}")


def check_derive(method: str, derive: int) -> None:
    """Raise ConfigError unless it is a number of convolutions."""
    if isinstance(derive, bool) or not isinstance(derive, int) or derive < 0:
        raise ConfigError(f"{method}: derive is a whole number from 0, not {derive}")


def item_size(kept: Tensor | Sequence[int]) -> int:
    """Return the bytes of one element; a bare shape means float32."""
    return kept.element_size() if isinstance(kept, Tensor) else torch.float32.itemsize


def shape_of(kept: Tensor | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a tensor, or of a shape itself."""
    return tuple(kept.shape if isinstance(kept, Tensor) else kept)


def owned(x: Tensor) -> Tensor:
    """Return x, or a copy where x is a view: a view would pin the whole storage it shows a part of."""
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def computable(x: Tensor) -> Tensor:
    """Return x in a type that has enough digits for linear algebra: half precision has no eigensolver and too few."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
