"""Steps that take the most working memory, for methods whose working memory follows the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.method import NO_STATE
from fedact.measure.ledger import tensors_in


@dataclass(frozen=True, eq=False)
class Hardest(Method):
    """Keeps, in an input's place, one like it that is as hard on the method as any; in every other way it is the method.

    place: which of the method's hard cases. ready: those that were made before the step that is measured, by shape.
    """

    traits: ClassVar[Traits] = Traits("none: for measuring")

    method: Method
    place: int
    derive: int = 0
    ready: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, State]] = field(default_factory=dict)

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        like = (x.shape, x.dtype)
        if like not in self.ready:
            self.ready[like] = self.method.worst_cases(x)[self.place]
        return self.method.compress(*self.ready[like])

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return self.method.reconstruct(compressed)

    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        return self.method.predicted_bytes(kept)


def hardest(methods: Mapping[str, Method], place: int) -> dict[str, Method]:
    """Return the methods with those that have so many hard cases at one of these."""
    return {
        name: Hardest(method, place, method.derive) if place < method.traits.worst_case_count else method
        for name, method in methods.items()
    }


def made_ready(methods: Mapping[str, Method]) -> list[Tensor]:
    """Return the tensors that a first step made for those that follow: they are no part of a step."""
    return [tensor for method in methods.values() if isinstance(method, Hardest) for tensor in tensors_in(method.ready)]
