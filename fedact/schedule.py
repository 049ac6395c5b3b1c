"""The learning rate over the rounds; within a round it does not change."""

from math import cos, pi

from fedact.config import Config


def learning_rate(config: Config, number: int) -> float:
    """Return the learning rate of round ``number``, which counts from 1."""
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + cos(pi * (number - 1) / config.rounds)) / 2
