"""``vanilla``, ``exact`` and ``checkpoint``: the tensor itself."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar, Self

from torch import Tensor

from fedact.compression.method import (
    NO_STATE,
    Compressed,
    Count,
    Method,
    State,
    Traits,
    item_size,
    owned,
    shape_of,
)
from fedact.config.spec import settings

IDENTITY = Traits("", keeps_input=True, per_example=True, tensor_seconds=0.0, element_seconds=0.0, gentlest="")


class Identity(Method):
    """Stores the tensor itself."""

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((owned(x),))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return compressed.tensors[0]

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return prod(shape_of(x)) * item_size(x)


@settings("exact")
class Exact(Identity):
    """Keeps the tensor, while frozen batch norms keep nothing and ReLUs at most one bit an element: the same gradient.

    Stores x itself: 4 bytes an element in float32, and an error of 0. What it spares are the tensors of the layers around: a
    frozen batch norm is an affine map, whose gradient needs no activation, and a ReLU needs a mask alone.


    >>> from fedact.compression import METHODS
    >>> METHODS["exact"](derive=2).predicted_bytes((16, 96, 14, 14))
    1204224
    """

    traits: ClassVar[Traits] = replace(
        IDENTITY, source="autograd's gradient without what it need not keep", variants=("", "derive=2")
    )


@settings("vanilla")
class Vanilla(Identity):
    """Plain autograd: every layer keeps what PyTorch keeps.

    Stores x itself (4 bytes an element in float32), and leaves the layers around it as they are: the baseline.

    >>> from fedact.compression import METHODS
    >>> METHODS["vanilla"]().predicted_bytes((16, 96, 14, 14))
    1204224
    """

    traits: ClassVar[Traits] = replace(IDENTITY, source="PyTorch autograd", saves_less=False)
    derive: ClassVar[None] = None  # type: ignore[misc]

    def recomputing(self, convolutions: int) -> Self:
        return self


@settings("checkpoint")
class Checkpoint(Identity):
    """Keeps the inputs of segments, and recomputes what lies inside: the same gradient for one more forward pass.

    A segment is a number of children of the outermost Sequential. While it is recomputed, its layers save what ``exact``
    saves; outside of a Sequential they always do. Chen et al., 2016, arXiv 1604.06174, section 4.

    children: of a segment, whole number from 1, default 1.

    >>> from fedact.compression import METHODS
    >>> METHODS["checkpoint"](children=2).segment
    2
    """

    traits: ClassVar[Traits] = replace(IDENTITY, source="Chen et al., 2016, arXiv 1604.06174, section 4")

    derive: ClassVar[None] = None  # type: ignore[misc]
    children: Count = 1

    def recomputing(self, convolutions: int) -> Self:
        return self

    @property
    def segment(self) -> int:
        return self.children
