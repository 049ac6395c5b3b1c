"""Linear layers as functions of the saved input: its channels are last as the layer has them, second as methods do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def channels_second(x: Float[Tensor, "batch *positions channels"]) -> Float[Tensor, "batch channels *positions"]:
    """Return a view of a tensor with its last dimension second; one of no positions is returned as it is."""
    return x.movedim(-1, 1) if x.dim() > 2 else x


def channels_last(x: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch *positions channels"]:
    """Return a view of a tensor with its second dimension last: what ``channels_second`` was given."""
    return x.movedim(1, -1) if x.dim() > 2 else x


@dataclass(frozen=True)
class MatrixProduct:
    """``nn.Linear``: y = x W^T + b over the channels.

    channels: their dimension in x and y: -1, as the layer has them, or 1, as methods do.
    """

    channels: Literal[-1, 1] = -1

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._placed(F.linear(self._last(x), weight, bias))

    def weight_gradient(self, x: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        return self.rows(grad_output).T @ self.rows(x)

    def input_gradient(self, shape: Sequence[int], grad_output: Tensor, weight: Tensor) -> Tensor:
        return self._placed(self._last(grad_output) @ weight)

    def bias_gradient(self, grad_output: Tensor) -> Tensor:
        return self.rows(grad_output).sum(0)

    def rows(self, x: Tensor) -> Float[Tensor, "rows channels"]:
        """Return the channels of every position of every example: a view where they lie side by side in memory."""
        last = self._last(x)
        return last.reshape(-1, last.shape[-1])

    def _last(self, x: Tensor) -> Tensor:
        return x if self.channels == -1 else channels_last(x)

    def _placed(self, x: Tensor) -> Tensor:
        return x if self.channels == -1 else channels_second(x)
