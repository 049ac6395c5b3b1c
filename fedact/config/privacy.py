"""Privacy of a client's update, applied before it leaves the device: the one table, and the settings.

federation/client_mods.py carries it out, through Flower's LocalDpMod.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from fedact.config.spec import build, settings

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Privacy:
    """What a client does to its update; its fields are its settings."""

    source: ClassVar[str] = ""


@settings("none")
class Plain(Privacy):
    """Updates are sent as they are."""

    source: ClassVar[str] = "-"


@settings("local_dp")
class LocalDp(Privacy):
    """Each client clips its update to clipping_norm and adds Gaussian noise, for (epsilon, delta) in each round.

    sensitivity: the largest L2 distance of two updates; unset, twice the clipping norm. The proof holds for epsilon below 1,
    for one round, and for the tensors alone: a reply's figures (accuracy, loss, examples) are sent as they are.
    """

    source: ClassVar[str] = "Dwork and Roth, 2014, appendix A"
    clipping_norm: Positive = 1.0
    sensitivity: Positive | None = None
    epsilon: Positive = 0.9
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @property
    def reach(self) -> float:
        """The sensitivity in force: the noise is scaled to it."""
        return 2 * self.clipping_norm if self.sensitivity is None else self.sensitivity


PRIVACY: dict[str, type[Privacy]] = {"none": Plain, "local_dp": LocalDp}
"""The one table of privacy mechanisms."""


@cache
def make_privacy(text: str) -> Privacy:
    """Return the rule behind ``NAME:key=value,...``; raises ConfigError for one that is not there."""
    return build("privacy", PRIVACY, text)
