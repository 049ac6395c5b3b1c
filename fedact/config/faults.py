"""Simulated faults: clients that vanish, lag or send damaged updates, drawn from the run's seed; nobody really waits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedact.config.errors import ConfigError
from fedact.config.seeds import Purpose, generator
from fedact.config.spec import fill, settings, written_settings

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["drop", "slow", "corrupt"]


@settings("faults")
class Faults:
    """Shares of clients that vanish (drop), come late by lag seconds on average (slow), or send a damaged update (corrupt).

    A client has one fault at most in a round. Delays are exponentially distributed.
    """

    drop: Share = 0.0
    slow: Share = 0.0
    corrupt: Share = 0.0
    lag: Annotated[float, Field(gt=0)] = 60.0

    def __post_init__(self) -> None:
        # Shares such as 0.6, 0.3 and 0.1 need not add up to 1 exactly.
        if (total := self.drop + self.slow + self.corrupt) > 1 + 1e-9:
            raise ConfigError(f"faults: drop, slow and corrupt add up to 1 at most, not {total:g}")


@dataclass(frozen=True)
class Fault:
    """What happens to one client in one round.

    lag: seconds, for ``slow``. damage: the key of DAMAGES and place: which tensor, as a share in [0, 1), for ``corrupt``.
    """

    kind: Kind
    lag: float
    damage: str
    place: float

    def loss_reason(self, deadline: float | None) -> str | None:
        """Return why no update comes before the deadline (seconds), None where one does, damaged or not."""
        if self.kind == "drop":
            return "no reply: the client vanished (simulated)"
        if self.kind == "slow" and deadline is not None and self.lag > deadline:
            return f"{self.lag:.1f} s of simulated lag, over the deadline of {deadline:g} s"
        return None


def make_faults(text: str) -> Faults:
    """Return the faults behind ``key=value,...`` or ``none``; raises ConfigError for what is no such thing."""
    if text.strip() == "none":
        return Faults()
    written = written_settings(text, text)
    if not written:
        raise ConfigError(f"faults are written drop=0.1,slow=0.05,corrupt=0.01 or none, not {text!r}")
    if "deadline" in written:
        raise ConfigError("the deadline of a round is --deadline SECONDS, for simulated lag and real replies alike")
    return fill(Faults, "faults", written, text)


def draw_fault(faults: Faults, seed: int, number: int, client: int) -> Fault | None:
    """Return a client's fault in a round, None for most: the same for every method and in every runtime.

    One random number says whether and of which kind, so that a client hit at some rates is hit at higher ones too.
    """
    kinds: tuple[tuple[Kind, float], ...] = (("drop", faults.drop), ("slow", faults.slow), ("corrupt", faults.corrupt))
    if not any(share for _, share in kinds):
        return None
    random = generator(seed, Purpose.FAULTS, number, client)
    hit, lag, place = random.random(), random.exponential(faults.lag), random.random()
    damage = list(DAMAGES)[random.integers(len(DAMAGES))]
    for kind, share in kinds:
        if hit < share:
            return Fault(kind, lag, damage, place)
        hit -= share
    return None


def damage_update(tensors: Tensors, damage: str, name: str) -> Tensors:
    """Return a copy of an update with one tensor damaged; damage: a key of DAMAGES, name: the tensor's."""
    return DAMAGES[damage](tensors, name)


def _not_finite(tensors: Tensors, name: str) -> Tensors:
    broken = tensors[name].clone()
    broken.view(-1)[0] = float("nan")
    return {**tensors, name: broken}


DAMAGES: dict[str, Callable[[Tensors, str], Tensors]] = {
    "nan": _not_finite,
    "shape": lambda tensors, name: {**tensors, name: tensors[name].unsqueeze(0)},
    "missing": lambda tensors, name: {other: tensor for other, tensor in tensors.items() if other != name},
    "extra": lambda tensors, name: {**tensors, f"{name}.extra": tensors[name]},
}
"""The one table of damages: (update, tensor's name) -> damaged copy."""
