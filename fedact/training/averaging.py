"""The mean of what clients trained, tensor by tensor: each over the clients that trained it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class RunningMean:
    """Averages every tensor over the clients that trained it, weighted by examples, one reply at a time.

    sums and weights: of each tensor. clients: how many were averaged; one that trained on no examples is none of them.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        if not weight:
            return
        for name, tensor in tensors.items():
            part = tensor.double() * weight
            self.sums[name] = self.sums[name] + part if name in self.sums else part
            self.weights[name] = self.weights.get(name, 0) + weight
            self.clients[name] = self.clients.get(name, 0) + 1

    def trained(self) -> dict[str, Tensor]:
        """Return the means of what somebody trained, in double precision."""
        return {name: total / self.weights[name] for name, total in self.sums.items()}

    def over(self, start: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the means, and the start of what nobody trained."""
        return laid_over(start, self.trained())

    def trained_by(self, names: Iterable[str]) -> dict[str, int]:
        """Return the layers of these tensors that somebody trained, each with the number of clients that were averaged."""
        return by_layer(self.clients, names)


def by_layer(clients: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Return the layers of those of the named tensors that have a count, with it."""
    return {name.rpartition(".")[0]: clients[name] for name in names if name in clients}


def laid_over(start: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the start with these tensors in their places, of the start's types."""
    return {name: tensors[name].to(tensor.dtype) if name in tensors else tensor for name, tensor in start.items()}
