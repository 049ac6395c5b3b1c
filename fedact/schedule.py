"""The learning rate over the rounds; within a round it does not change."""

from math import cos, pi

from fedact.config import Config

POLY_POWER = 0.9


def learning_rate(config: Config, number: int) -> float:
    """Return the learning rate of round ``number``, which counts from 1.

    Over the warm-up rounds it rises in equal steps to the whole; the schedule begins with the round after.
    """
    warmup = config.warmup_rounds
    if number <= warmup:
        return config.lr * number / (warmup + 1)
    done = (number - 1 - warmup) / (config.rounds - warmup)
    if config.schedule == "cosine":
        return config.lr * (1 + cos(pi * done)) / 2
    return config.lr * float((1 - done) ** POLY_POWER) if config.schedule == "poly" else config.lr
