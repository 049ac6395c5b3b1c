"""A client's training settings in a round: its learning rate by schedule, and the rest from the config."""

from dataclasses import dataclass
from math import cos, pi

from fedact.config.privacy import LocalDp, make_privacy
from fedact.config.schema import Config
from fedact.config.strategies import make_strategy

POWER = 0.9
"""The exponent of ``poly``, as in DeepLab (Chen et al., IEEE TPAMI 40(4), 2018, section 4.1)."""


def learning_rate(config: Config, number: int, lr: float | None = None) -> float:
    """Return the learning rate of round ``number``, which counts from 1.

    It rises linearly over the warm-up rounds, and is ``lr`` in the round after; from there the schedule runs over the
    remaining rounds. lr: a plan's own, by default the config's.
    """
    warmup, lr = config.warmup_rounds, lr or config.usual_lr
    if number <= warmup:
        return lr * number / (warmup + 1)
    progress = (number - 1 - warmup) / (config.rounds - warmup)
    if config.schedule == "cosine":
        return lr * ((1 + cos(pi * progress)) / 2)
    return lr * ((1 - progress) ** POWER if config.schedule == "poly" else 1.0)


@dataclass(frozen=True)
class Recipe:
    """A client's SGD settings for a round; the optimizer is new every round, and clipping is of accumulated gradients.

    pull: FedProx's mu, 0 for none.
    """

    batch_size: int
    local_epochs: int
    lr: float
    momentum: float
    weight_decay: float
    clip_norm: float
    pull: float = 0.0


def recipe(config: Config, number: int, lr: float | None = None) -> Recipe:
    """Return the clients' training settings in round ``number``, which counts from 1; lr: as in ``learning_rate``."""
    return Recipe(
        batch_size=config.batch_size,
        local_epochs=config.local_epochs,
        lr=learning_rate(config, number, lr),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        pull=make_strategy(config.strategy).pull,
    )


def keeps_received_weights(config: Config) -> bool:
    """Tell whether clients keep a copy of the trained weights as they received them, beside those that they train.

    FedProx pulls to them, and ``local_dp`` clips the difference from them; one copy serves both.
    """
    return make_strategy(config.strategy).pull > 0 or isinstance(make_privacy(config.privacy), LocalDp)
