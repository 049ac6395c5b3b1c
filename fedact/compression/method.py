"""What a method is: a codec for a tensor kept for the backward pass."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedact.compression.operations import Operation


class Compressed(NamedTuple):
    """What is kept in a tensor's place: the tensors, each alone in its storage, and what is no tensor (shapes, ranks)."""

    tensors: tuple[Tensor, ...]
    about: Any = None


@dataclass(frozen=True)
class Method(ABC):
    """A codec: ``reconstruct(compress(x))`` stands in for x in the weight gradient.

    The gradients default to those of the reconstruction; a method may bring faster ones with the same value.
    """

    source: ClassVar[str]
    lean: ClassVar[bool] = True
    """Whether the layers around it drop what an exact gradient does not need (batch norm's input, ReLU's copies)."""

    @abstractmethod
    def compress(self, x: Tensor) -> Compressed:
        """Return what to keep of x, a tensor of any shape whose first dimension is the batch."""

    @abstractmethod
    def reconstruct(self, compressed: Compressed) -> Tensor:
        """Return the tensor of x's shape and type that the backward pass sees."""

    @abstractmethod
    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        """Return the bytes that ``compress`` stores for a tensor; for a shape (in float32), the most it can store."""

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's weight."""
        return operation.weight_gradient(self.reconstruct(compressed), grad_output, weight)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the gradient of the operation's input, which needs no activation."""
        return operation.input_gradient(shape, grad_output, weight)

    def levels(self, x: Tensor) -> dict[float, "Method"]:
        """Return this method with its settings (or its caps) fixed for tensors like x, by level, the gentlest first.

        Every tensor gets the same levels; given settings are kept, and leave one level where there is nothing to choose.
        """
        return {1.0: self}

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


def item_size(kept: Tensor | Sequence[int]) -> int:
    """Return the bytes of one element; a bare shape means float32."""
    return kept.element_size() if isinstance(kept, Tensor) else torch.float32.itemsize


def shape_of(kept: Tensor | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a tensor, or of a shape itself."""
    return tuple(kept.shape if isinstance(kept, Tensor) else kept)
