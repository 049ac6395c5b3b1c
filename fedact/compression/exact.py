"""``vanilla`` and ``exact``: the tensor itself."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

from torch import Tensor

from fedact.compression.method import (
    NO_STATE,
    Compressed,
    Convolutions,
    Count,
    Method,
    State,
    Traits,
    item_size,
    owned,
    shape_of,
)
from fedact.config.spec import settings

ITSELF = Traits("", keeps_input=True, per_example=True, tensor_seconds=0.0, element_seconds=0.0)


class Itself(Method):
    """Saves the tensor itself."""

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return Compressed((owned(x),))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return compressed.tensors[0]

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return prod(shape_of(x)) * item_size(x)


@settings("exact")
class Exact(Itself):
    """Keeps the tensor, while frozen batch norms keep nothing and ReLUs at most one bit an element: the same gradient.

    derive: an input that is at most so many convolutions behind another kept one, no smaller than it, is not kept but made
    again from it in the backward pass, with the ReLUs' masks; 0 keeps every input.
    """

    traits: ClassVar[Traits] = replace(
        ITSELF, source="autograd's gradient without what it need not keep", variants=("", "derive=2")
    )

    derive: Convolutions = 0


@settings("vanilla")
class Vanilla(Itself):
    """Plain autograd: every layer keeps what PyTorch keeps."""

    traits: ClassVar[Traits] = replace(ITSELF, source="PyTorch autograd", saves_less=False)


@settings("checkpoint")
class Checkpoint(Itself):
    """Keeps the inputs of segments, and recomputes what lies inside: the same gradient for one more forward pass.

    children: how many children of the outermost Sequential make a segment. While a segment is recomputed, its layers keep
    what ``exact`` keeps; outside of a Sequential they always do.
    """

    traits: ClassVar[Traits] = replace(ITSELF, source="Chen et al., 2016, arXiv 1604.06174, section 4")

    children: Count = 1

    @property
    def segment(self) -> int:
        return self.children
