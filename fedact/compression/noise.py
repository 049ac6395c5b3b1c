"""What methods with noise have in common: their state is the seed of the next step's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedact.compression.method import Method, State


@dataclass(frozen=True)
class Noisy(Method):
    """A method that draws at every step. State: the seed of the next step's noise, 8 bytes."""

    def start(self, seed: int) -> State:
        return State((torch.tensor([seed]),))

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        return torch.int64.itemsize

    def noise(self, x: Tensor, state: State) -> tuple[Tensor, torch.Generator]:
        """Return a step's seed, of shape (1,), and what draws from it on the tensor's device."""
        (seed,) = (state if state.tensors else self.start(0)).tensors
        return seed, torch.Generator(x.device).manual_seed(int(seed))


def next_seed(generator: torch.Generator) -> State:
    """Return the state that the next step starts from."""
    return State((torch.randint(2**62, (1,), generator=generator, device=generator.device),))
