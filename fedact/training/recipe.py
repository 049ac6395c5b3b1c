"""The learning rate over the rounds; within a round it does not change."""

from dataclasses import dataclass
from math import cos, pi

from fedact.config.schema import Config
from fedact.config.strategies import make_strategy

POWER = 0.9
"""Of ``poly``, as in DeepLab (Chen et al., IEEE TPAMI 40(4), 2018, section 4.1)."""


def learning_rate(config: Config, number: int) -> float:
    """Return the learning rate of round ``number``, which counts from 1.

    It rises by equal steps over the warm-up, the round after which is the first to have the whole of it; the schedule then
    runs over the rounds that are left.
    """
    warmup = config.warmup_rounds
    if number <= warmup:
        return config.lr * number / (warmup + 1)
    done = (number - 1 - warmup) / (config.rounds - warmup)
    if config.schedule == "cosine":
        return config.lr * ((1 + cos(pi * done)) / 2)
    return config.lr * ((1 - done) ** POWER if config.schedule == "poly" else 1.0)


@dataclass(frozen=True)
class Recipe:
    """How a client trains: plain SGD, made anew each round; gradients are clipped after accumulation.

    pull: FedProx's mu, 0 for none.
    """

    batch_size: int
    local_epochs: int
    lr: float
    momentum: float
    weight_decay: float
    clip_norm: float
    pull: float = 0.0


def recipe(config: Config, number: int) -> Recipe:
    """Return how a client trains in a round."""
    return Recipe(
        batch_size=config.batch_size,
        local_epochs=config.local_epochs,
        lr=learning_rate(config, number),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        pull=make_strategy(config.strategy).pull,
    )
