"""The choice of what is trained and how fast, and the trials that it was made by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
"""A number of bytes, examples or layers."""
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Trial:
    """One candidate of the trial by which depth and learning rate were chosen, on the server's own examples.

    layers: trained convolutions. first_loss: the mean loss of the clients' steps in the first round. loss, score: of the
    averaged model on held-out examples at the end, the loss at its best temperature. finished: False where the trial was
    ended early, for steps too long or a loss too high; loss and score are then of its first part.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    layers: Count
    lr: Rate
    first_loss: Measure
    loss: Measure
    score: Measure
    finished: bool = True


@dataclass(frozen=True)
class Choice:
    """A depth and its learning rate, those of shallower plans too, and the trials that they were chosen by.

    lrs: by number of trained convolutions, rising; a depth between two has the deeper one's.
    """

    layers: int
    lrs: tuple[tuple[int, float], ...]
    trials: tuple[Trial, ...] = ()

    def lr(self, layers: int) -> float:
        """Return the learning rate of a plan with so many trained convolutions.

        >>> Choice(8, ((0, 0.1), (8, 0.03))).lr(3)
        0.03
        """
        return next((lr for depth, lr in self.lrs if depth >= layers), self.lrs[-1][1])


def choice_text(trials: Sequence[Trial], layers: int) -> str:
    """Return in a line what was chosen by trials, and by which losses.

    >>> choice_text([Trial(0, 0.1, 1.2, 1.68, 0.41), Trial(8, 0.03, 1.5, 1.49, 0.5)], 8)
    '8 convolutions at 0.03, of 2 candidates tried: held-out loss 1.49, score 0.50; the head alone at 0.1: 1.68, 0.41'
    """
    of = {
        depth: min((t for t in trials if t.layers == depth and t.finished), key=lambda t: t.loss) for depth in done(trials)
    }
    if layers not in of:
        return f"{layers or 'no'} convolutions; of {len(trials)} candidates tried none finished"
    best, what = of[layers], f"{layers} convolutions" if layers else "the head alone"
    text = f"{what} at {best.lr:g}, of {len(trials)} candidates tried: held-out loss {best.loss:.2f}, score {best.score:.2f}"
    rival = of.get(0) if layers else min((of[depth] for depth in of if depth), key=lambda t: t.loss, default=None)
    if rival is None:
        return text
    name = "the head alone" if layers else f"{rival.layers} convolutions"
    return f"{text}; {name} at {rival.lr:g}: {rival.loss:.2f}, {rival.score:.2f}"


def done(trials: Sequence[Trial]) -> set[int]:
    """Return the depths of the trials that were not ended early."""
    return {trial.layers for trial in trials if trial.finished}
