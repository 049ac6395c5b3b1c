"""The server's optimizers: torch.optim on the pseudo-gradient, the model minus the clients' mean."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD, Adagrad, Adam, Optimizer

from fedact.config.errors import ConfigError
from fedact.config.strategies import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

STEPS = "steps"


class Yogi(Optimizer):
    """Yogi as in Reddi et al., ICLR 2021, algorithm 2: Adam whose second moment moves by at most the newest square."""

    def __init__(self, parameters: Iterable[Parameter], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with every parameter that has a gradient."""
        for group in self.param_groups:
            beta_1, beta_2 = group["betas"]
            for parameter in (weight for weight in group["params"] if weight.grad is not None):
                state, gradient = self.state[parameter], parameter.grad
                mean = state.get("exp_avg", torch.zeros_like(gradient))
                variance = state.get("exp_avg_sq", torch.zeros_like(gradient))
                state["exp_avg"] = mean = beta_1 * mean + (1 - beta_1) * gradient
                square = gradient**2
                state["exp_avg_sq"] = variance = variance - (1 - beta_2) * square * torch.sign(variance - square)
                parameter.sub_(group["lr"] * mean / (variance.sqrt() + group["eps"]))


OPTIMIZERS: dict[type[Strategy], Callable[[list[Parameter], Any], Optimizer]] = {
    FedAvgM: lambda parameters, s: SGD(parameters, lr=s.server_learning_rate, momentum=s.server_momentum),
    FedAdam: lambda parameters, s: Adam(parameters, lr=s.eta, betas=(s.beta_1, s.beta_2), eps=s.tau),
    FedYogi: lambda parameters, s: Yogi(parameters, lr=s.eta, betas=(s.beta_1, s.beta_2), eps=s.tau),
    FedAdagrad: lambda parameters, s: Adagrad(parameters, lr=s.eta, eps=s.tau),
}
"""The one table of server optimizers, by the strategy that names their settings."""

MOMENTS: dict[str, tuple[tuple[str, ...], int]] = {
    "momentum_vector": (("momentum_buffer",), 1),
    "m_t": (("exp_avg",), -1),
    "v_t": (("exp_avg_sq", "sum"), 1),
}
"""Moments by their names in a checkpoint, which are Flower's: torch.optim's names, and the sign between the two."""


@dataclass
class ServerOptimizer:
    """A strategy's optimizers, one a tensor, so that tensors that no client trained take no step.

    steps: the number of steps so far, by tensor.
    """

    strategy: Strategy
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def step(self, name: str, before: Tensor, mean: Tensor) -> Tensor:
        """Return the named tensor after one step, as float64; before: its value, mean: the clients' mean."""
        optimizer, parameter = self._optimizer(name, before)
        self.steps[name] = self.steps.get(name, 0) + 1
        if isinstance(self.strategy, FedAdam):
            # Flower adds tau to the root of the uncorrected second moment, torch.optim to that of the corrected one.
            optimizer.param_groups[0]["eps"] = self.strategy.tau / sqrt(1 - self.strategy.beta_2 ** self.steps[name])
        parameter.data = before.double()
        parameter.grad = parameter.detach() - mean
        optimizer.step()
        return parameter.detach().clone()

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts for the next round, by tensor and moment: ``features.18.0.weight/m_t``."""
        moments = {
            f"{name}/{moment}": MOMENTS[moment][1] * state[torch_name]
            for name, optimizer in self.optimizers.items()
            for state in optimizer.state.values()
            for moment in self.strategy.moments
            for torch_name in MOMENTS[moment][0]
            if state.get(torch_name) is not None
        }
        return moments | {f"{name}/{STEPS}": torch.tensor(count) for name, count in self.steps.items()}

    def load(self, state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
        """Set the moments and step counts that ``state`` returned.

        Raises ConfigError for entries that are missing, not finite, or of another model or strategy.
        """
        for key, tensor in state.items():
            name, _, moment = key.rpartition("/")
            if moment == "m_t" and isinstance(self.strategy, FedAdagrad):
                # Flower's FedAdagrad, and checkpoints made through it, also hold the last pseudo-gradient.
                continue
            like = model.get(name)
            if like is None or moment not in (STEPS, *self.strategy.moments):
                kind = type(self.strategy).__name__
                raise ConfigError(f"the server's state holds {key!r}, which {kind} or the model does not have")
            shape = () if moment == STEPS else tuple(like.shape)
            if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"the server's state {key!r} is not finite, or not of shape {shape}")
            if moment == STEPS and tensor < 1:
                raise ConfigError(f"the server's state {key!r} is a number of steps from 1, not {tensor}")
            optimizer, parameter = self._optimizer(name, like)
            if moment == STEPS:
                self.steps[name] = int(tensor)
                optimizer.state[parameter]["step"] = torch.tensor(float(tensor))
            else:
                torch_names, sign = MOMENTS[moment]
                torch_name = "sum" if isinstance(optimizer, Adagrad) else torch_names[0]
                optimizer.state[parameter][torch_name] = sign * tensor.double()
        needed = (STEPS,) if isinstance(self.strategy, FedAvgM) else (STEPS, *self.strategy.moments)
        for key in (f"{name}/{part}" for name in self.optimizers for part in needed):
            if key not in state:
                raise ConfigError(f"the server's state lacks {key!r}")

    def _optimizer(self, name: str, like: Tensor) -> tuple[Optimizer, Parameter]:
        """Return a tensor's optimizer and float64 parameter, created at the first call."""
        if name not in self.optimizers:
            parameters = [Parameter(torch.zeros_like(like, dtype=torch.float64))]
            self.optimizers[name] = OPTIMIZERS[type(self.strategy)](parameters, self.strategy)
        (parameter,) = self.optimizers[name].param_groups[0]["params"]
        return self.optimizers[name], parameter
