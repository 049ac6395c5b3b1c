"""Steps with the most working memory, for methods whose working memory follows the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedact.compression import Compressed, Method, State, Traits
from fedact.compression.method import NO_STATE
from fedact.measure.ledger import tensors_in


class WorstCaseInputs:
    """Remembers one of a method's worst cases for every shape and type of input; made at the first request.

    index: which of the method's ``worst_cases``.
    """

    def __init__(self, method: Method, index: int) -> None:
        self.method, self.index = method, index
        self.by_shape: dict[tuple[torch.Size, torch.dtype], tuple[Tensor, State]] = {}

    def like(self, x: Tensor) -> tuple[Tensor, State]:
        """Return an input of x's shape and type, and a state, on which the method takes the most working memory."""
        key = (x.shape, x.dtype)
        if key not in self.by_shape:
            self.by_shape[key] = self.method.worst_cases(x)[self.index]
        return self.by_shape[key]


@dataclass(frozen=True, eq=False)
class WorstCase(Method):
    """A method that compresses one of its worst cases in the place of every input; otherwise the method itself."""

    traits: ClassVar[Traits] = Traits("none: for measuring")

    method: Method
    inputs: WorstCaseInputs

    @property
    def fixed_size(self) -> bool:
        return self.method.fixed_size and self.method.traits.fixed_workspace

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        return self.method.compress(*self.inputs.like(x))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return self.method.reconstruct(compressed)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return self.method.predicted_bytes(x)


def worst_cases(methods: Mapping[str, Method], index: int) -> dict[str, Method]:
    """Return the methods, by layer, each at its worst case of this index; a method with fewer cases as it is."""
    return {
        name: WorstCase(method, WorstCaseInputs(method, index), derive=method.recompute)
        if index < method.traits.worst_case_count
        else method
        for name, method in methods.items()
    }


def worst_case_tensors(methods: Mapping[str, Method]) -> list[Tensor]:
    """Return the tensors of all worst cases made so far: input of a measured step, not part of what it holds."""
    return [
        tensor
        for method in methods.values()
        if isinstance(method, WorstCase)
        for tensor in tensors_in(method.inputs.by_shape)
    ]
