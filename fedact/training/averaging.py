"""The clients' mean of every tensor, over the clients that trained it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class RunningMean:
    """Averages every tensor over the clients that trained it, weighted by examples, one reply at a time.

    By tensor: weighted sums, sums of weights, and clients, the number averaged (those with examples).
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Add one client's tensors with its number of examples; one without examples adds nothing."""
        if not weight:
            return
        for name, tensor in tensors.items():
            if name in self.sums:
                self.sums[name].add_(tensor, alpha=weight)
            else:
                self.sums[name] = tensor.to(torch.float64, copy=True).mul_(weight)
            self.weights[name] = self.weights.get(name, 0) + weight
            self.clients[name] = self.clients.get(name, 0) + 1

    def trained(self) -> dict[str, Tensor]:
        """Return the means of the tensors that any client trained, as float64."""
        return {name: total / self.weights[name] for name, total in self.sums.items()}

    def over(self, start: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of ``start``, replaced by the means (in its types) where any client trained them."""
        return overlay(start, self.trained())

    def trained_by(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of averaged clients by layer, for the layers of the named tensors that any client trained."""
        return by_layer(self.clients, names)


def by_layer(clients: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the named tensors' counts by layer, without tensors that have none."""
    return {name.rpartition(".")[0]: clients[name] for name in names if name in clients}


def overlay(start: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``start``, replaced by those of the same name in ``tensors`` in the types of ``start``."""
    return {name: tensors[name].to(tensor.dtype) if name in tensors else tensor for name, tensor in start.items()}
