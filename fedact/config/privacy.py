"""What a client does to its update before it leaves the device: the one table, and the settings.

mods.py carries it out, through Flower's LocalDpMod.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedact.config.errors import ConfigError
from fedact.config.spec import above, build


@dataclass(frozen=True)
class Privacy:
    """A rule for one update; its fields are its settings."""

    source: ClassVar[str] = ""


@dataclass(frozen=True)
class Plain(Privacy):
    """Updates are sent as they are."""

    source: ClassVar[str] = "-"


@dataclass(frozen=True)
class LocalDp(Privacy):
    """Each client clips its update to clipping_norm and adds Gaussian noise, for (epsilon, delta) in each round.

    sensitivity: how far two updates can lie apart; unset, twice the clipping norm. The proof holds for epsilon below 1, for
    one round, and for the tensors alone: a reply's figures (accuracy, loss, examples) are sent as they are.
    """

    source: ClassVar[str] = "Dwork and Roth, 2014, appendix A"
    clipping_norm: float = 1.0
    sensitivity: float | None = None
    epsilon: float = 0.9
    delta: float = 1e-5

    def __post_init__(self) -> None:
        above("local_dp", "clipping_norm", self.clipping_norm)
        above("local_dp", "epsilon", self.epsilon)
        if self.sensitivity is not None:
            above("local_dp", "sensitivity", self.sensitivity)
        if not 0 < self.delta < 1:
            raise ConfigError(f"local_dp: delta lies between 0 and 1, not {self.delta:g}")

    @property
    def reach(self) -> float:
        """The sensitivity that the noise is made for."""
        return 2 * self.clipping_norm if self.sensitivity is None else self.sensitivity


PRIVACY: dict[str, type[Privacy]] = {"none": Plain, "local_dp": LocalDp}
"""The one table of what is done to updates."""


def make_privacy(text: str) -> Privacy:
    """Return the rule behind ``NAME:key=value,...``; raises ConfigError for one that is not there."""
    return build("privacy", PRIVACY, text)
