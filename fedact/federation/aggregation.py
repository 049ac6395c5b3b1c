"""From the updates of a round to the next model; each tensor over the clients that trained it.

Clients under different budgets train different tensors, so every rule is carried out a tensor at a time. A tensor that
nobody trained in a round stays as it is, and so do its moments.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedact.config.strategies import Median, Strategy, TrimmedMean
from fedact.training.averaging import RunningMean, by_layer, overlay
from fedact.training.server_optimizer import ServerOptimizer

ROBUST_RULES: dict[type[Strategy], Any] = {Median: flower.FedMedian, TrimmedMean: flower.FedTrimmedAvg}
"""Flower's classes of the rules that need all updates of a round at once; they want the same tensors of every client."""


class Collector(Protocol):
    """Takes a round's updates in."""

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        """Take in one client's update, and its number of examples."""

    def trained(self) -> dict[str, Tensor]:
        """Return what the updates come to, in double precision: the tensors that somebody trained."""

    def trained_by(self, names: Iterable[str]) -> dict[str, int]:
        """Return the layers of these tensors that somebody trained, each with the number of clients that count."""


@dataclass
class Updates:
    """Keeps a round's updates until its end, for rules that no running sum can carry out; examples do not weigh."""

    strategy: Strategy
    tensors: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, tensors: Mapping[str, Tensor], weight: int) -> None:
        for name, tensor in tensors.items() if weight else ():
            self.tensors.setdefault(name, []).append(tensor)

    def trained(self) -> dict[str, Tensor]:
        return {name: robust_rule(self.strategy, updates) for name, updates in self.tensors.items()}

    def trained_by(self, names: Iterable[str]) -> dict[str, int]:
        return by_layer({name: len(updates) for name, updates in self.tensors.items()}, names)


class Aggregation:
    """A strategy at work: takes in each round's updates and makes the next model of them."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.optimizer = ServerOptimizer(strategy) if strategy.moments else None

    def collector(self) -> Collector:
        """Return what takes in the updates of a new round."""
        return Updates(self.strategy) if type(self.strategy) in ROBUST_RULES else RunningMean()

    def next_model(self, before: Mapping[str, Tensor], collected: Collector) -> dict[str, Tensor]:
        """Return the next model's tensors; what nobody trained is what it was."""
        tensors = collected.trained()
        if self.optimizer is not None:
            tensors = {name: self.optimizer.step(name, before[name], mean) for name, mean in tensors.items()}
        return overlay(before, tensors)


def robust_rule(strategy: Strategy, updates: list[Tensor]) -> Tensor:
    """Return what a robust rule of Flower's makes of some clients' updates of one tensor, as float64."""
    rule = ROBUST_RULES[type(strategy)](**asdict(strategy))
    arrays, _ = rule.aggregate_train(0, [Reply(update) for update in updates])
    return torch.from_numpy(arrays["tensor"].numpy())


class Reply:
    """What of a reply Flower's strategies look at. A Message proper needs a sender, and these are none's."""

    def __init__(self, update: Tensor) -> None:
        arrays = ArrayRecord({"tensor": Array(update.double().numpy())})
        self.content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})

    def has_error(self) -> bool:
        return False
