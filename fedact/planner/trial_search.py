"""The search for a depth and a learning rate by trials: a few candidates, the next ones by how the last ones did."""

from collections.abc import Callable, Sequence
from math import log10

from fedact.config.choice import Choice, Trial
from fedact.planner.search import USUAL_DEPTH
from fedact.training.judgement import Judgement, clearly_better

SHALLOWER, DEEPER = (4,), (16, 32)
"""The depths that are tried beside the usual one and the head alone; still deeper ones take several times as long."""
MOST_MOVES = 2
"""The search for a learning rate goes so many rungs of the ladder ..., 0.01, 0.03, 0.1, ... up or down from its start."""

Judge = Callable[[int, float, Judgement | None], Judgement]
"""(layers, learning rate, what it must beat) -> how the candidate did."""


def usual_choice(layers: int | str, convolutions: int, lr: float, depth: int = USUAL_DEPTH) -> Choice:
    """Return what is trained without a trial: the given layers, or for "auto" ``depth``, at one learning rate."""
    return Choice(min(depth, convolutions) if layers == "auto" else int(layers), ((0, lr),))


def choose(judge: Judge, layers: int | str, convolutions: int, lr: float | None, usual_lr: float, has_head: bool) -> Choice:
    """Return the depth and learning rate that do best in trials; where they differ by no more than noise, the safer one.

    layers: as given, or "auto"; convolutions: how many there are. lr: as given, None where it is free: then it is searched
    from ``usual_lr``.

    The learning rate is searched for the head alone and for the usual depth; other depths have the latter's. The head alone
    is trained where it is clearly better than the usual depth, a depth beyond that where its mean loss is less than that of
    the depth before it: a trial has a fraction of the examples that the fleet trains on, and what has more weights learns
    the more from more of them.
    """
    trials: list[Judgement] = []

    def tried(depth: int, rate: float, rival: Judgement | None = None) -> Judgement:
        trials.append(judge(depth, rate, rival))
        return trials[-1]

    def at_best_step(depth: int) -> Judgement:
        return tried(depth, lr) if lr is not None else best_step(lambda *step: tried(depth, *step), usual_lr)

    if layers != "auto":
        best = at_best_step(int(layers))
        return Choice(best.layers, ((best.layers, best.lr),), records(trials))
    usual = min(USUAL_DEPTH, convolutions)
    chosen = {depth: at_best_step(depth) for depth in ([0] if has_head else []) + [usual]}
    best = chosen[usual]
    if has_head and clearly_better(chosen[0], best):
        best = chosen[0]
    for depth in DEEPER if best.layers else SHALLOWER:
        if usual < depth <= convolutions if best.layers else depth < usual:
            chosen[depth] = other = tried(depth, chosen[usual].lr, best)
            if not (other.finished and other.loss < best.loss):
                break
            best = other
    lrs = {depth: each.lr for depth, each in chosen.items() if depth <= best.layers}
    return Choice(best.layers, tuple(sorted(lrs.items())), records(trials))


def best_step(judge: Callable[..., Judgement], start: float) -> Judgement:
    """Return the best of some learning rates: longer ones while these are better and stable, else shorter ones.

    judge: (learning rate, what it must beat) -> how it did.
    """
    best = judge(start)
    for direction in (1, -1):
        for _ in range(MOST_MOVES if direction > 0 or best.lr == start else 0):
            other = judge(rung(best.lr, direction), best)
            # A longer step that does as well leaves more to the schedule; a shorter one must make up for learning less.
            better = other.loss < best.loss if direction > 0 else clearly_better(other, best)
            if not (other.finished and better):
                break
            best = other
    return best


def records(trials: Sequence[Judgement]) -> tuple[Trial, ...]:
    """Return the trials as they are kept in a plan."""
    return tuple(
        Trial(each.layers, each.lr, round(each.first_loss, 4), round(each.loss, 4), round(each.score, 4), each.finished)
        for each in trials
    )


def rung(lr: float, moves: int) -> float:
    """Return the learning rate some rungs up or down the ladder of ones and threes.

    >>> rung(0.03, 1), rung(0.1, 1), rung(0.03, -1), rung(0.01, -1)
    (0.1, 0.3, 0.01, 0.003)
    """
    place = round(2 * log10(lr)) + moves
    return float(f"{(3 if place % 2 else 1)}e{place // 2}")
