"""From the updates of a round to the next model, by Flower's strategies; each tensor over the clients that trained it.

Flower's classes want the same tensors of every client, and clients under different budgets train different ones. So each is
given one tensor at a time: for a server's optimizer one reply that holds our running mean, for the robust rules the updates
of those clients that trained it. A tensor that nobody trained in a round stays as it is, and so do its moments: as in
torch.optim, what has no gradient takes no step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedact.config.errors import ConfigError
from fedact.config.strategies import Strategy
from fedact.training.averaging import RunningMean, by_layer, laid_over

TENSOR, STEPS = "tensor", "steps"


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
        rule = flowers_own(self.strategy)
        return {name: aggregated(rule, [tensor.double().numpy() for tensor in own]) for name, own in self.tensors.items()}

    def trained_by(self, names: Iterable[str]) -> dict[str, int]:
        return by_layer({name: len(own) for name, own in self.tensors.items()}, names)


@dataclass
class ServerOptimizer:
    """The server's optimizer: for each tensor Flower's own, with what it remembers, and how many steps it has taken."""

    strategy: Strategy
    servers: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def step(self, name: str, before: Tensor, mean: Tensor) -> Tensor:
        """Return a tensor after the server's step from where it was towards, or beyond, the clients' mean."""
        server = self.servers.setdefault(name, flowers_own(self.strategy))
        start = before.double().numpy()
        server.current_arrays = _record(start) if isinstance(server, flower.FedAvgM) else {TENSOR: start}
        taken = self.steps.get(name, 0)
        self.steps[name] = taken + 1
        # FedAdam's correction takes round + 1 for the number of this step: what it should be is counted from here.
        return aggregated(server, [mean.double().numpy()], taken)

    def state(self) -> dict[str, Tensor]:
        """Return what the next round needs, by tensor and attribute: ``features.18.0.weight/m_t``."""
        moments = {
            f"{name}/{attribute}": torch.from_numpy(_first(getattr(server, attribute)))
            for name, server in self.servers.items()
            for attribute in self.strategy.remembers
            if getattr(server, attribute)
        }
        return moments | {f"{name}/{STEPS}": torch.tensor(count) for name, count in self.steps.items()}

    def load(self, state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned; raises ConfigError for what does not belong to the model or the strategy."""
        for key, tensor in state.items():
            name, _, attribute = key.rpartition("/")
            _check_state(self.strategy, key, tensor, model.get(name))
            if attribute == STEPS:
                self.steps[name] = int(tensor)
                continue
            server = self.servers.setdefault(name, flowers_own(self.strategy))
            moment = tensor.numpy()
            setattr(server, attribute, [moment] if isinstance(server, flower.FedAvgM) else {TENSOR: moment})


class Aggregation:
    """A strategy at work: takes in each round's updates and makes the next model of them."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.optimizer = ServerOptimizer(strategy) if strategy.remembers else None

    def collector(self) -> Collector:
        """Return what takes in the updates of a new round."""
        return Updates(self.strategy) if self.strategy.keeps_updates else RunningMean()

    def next_model(self, before: Mapping[str, Tensor], collected: Collector) -> dict[str, Tensor]:
        """Return the next model's tensors; what nobody trained is what it was."""
        tensors = collected.trained()
        if self.optimizer is not None:
            tensors = {name: self.optimizer.step(name, before[name], mean) for name, mean in tensors.items()}
        return laid_over(before, tensors)


def flowers_own(strategy: Strategy) -> Any:
    """Return Flower's strategy with these settings."""
    return getattr(flower, strategy.flower)(**asdict(strategy))


def aggregated(rule: Any, updates: Iterable[np.ndarray], server_round: int = 0) -> Tensor:
    """Return what one of Flower's strategies makes of some clients' updates of one tensor, all of the same weight."""
    arrays, _ = rule.aggregate_train(server_round, [Reply(update) for update in updates])
    return torch.from_numpy(arrays[TENSOR].numpy())


class Reply:
    """What of a reply Flower's strategies look at. A Message proper needs a sender, and these are none's."""

    def __init__(self, update: np.ndarray) -> None:
        self.content = RecordDict({"arrays": _record(update), "metrics": MetricRecord({"num-examples": 1})})

    def has_error(self) -> bool:
        return False


def _record(array: np.ndarray) -> ArrayRecord:
    return ArrayRecord({TENSOR: Array(array)})


def _first(value: Any) -> Any:
    """Return the only tensor of what Flower keeps by name, or, in FedAvgM, in a list."""
    return value[0] if isinstance(value, list) else value[TENSOR]


def _check_state(strategy: Strategy, key: str, tensor: Tensor, like: Tensor | None) -> None:
    attribute = key.rpartition("/")[2]
    if like is None or attribute not in (STEPS, *strategy.remembers):
        raise ConfigError(f"the server's state holds {key!r}, which {strategy.flower} or the model does not have")
    shape = () if attribute == STEPS else tuple(like.shape)
    if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"the server's state {key!r} is not finite, or not of shape {shape}")
