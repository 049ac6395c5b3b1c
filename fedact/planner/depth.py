"""How many convolutions ``layers="auto"`` trains: as few as are expected to teach most of what all of them would."""

from collections.abc import Mapping, Sequence

from fedact.planner.learning import expected_learning

ENOUGH = 0.7
"""Fewer layers will do where they are expected to teach this share of the most (the README has what was seen)."""
UNTOLD = 8
"""Where the examples tell nothing."""

Errors = Mapping[str, float]


def depth_for(errors_at: Mapping[int, Errors], lengths: Mapping[str, float], enough: float = ENOUGH) -> int | None:
    """Return the least depth that teaches enough, or ``UNTOLD`` where the examples tell nothing; None where there is none.

    errors_at: the trained layers' gradient errors at every depth that can be had. lengths: of their exact gradients.
    """
    teaches = {depth: expected_learning(lengths, errors) for depth, errors in sorted(errors_at.items())}
    most = max(teaches.values(), default=0.0)
    if not 0 < most < float("inf"):
        return max((depth for depth in teaches if depth <= UNTOLD), default=min(teaches, default=None))
    return next(depth for depth, learning in teaches.items() if learning >= enough * most)


def grid(depths: Sequence[int]) -> list[int]:
    """Return the depths that are looked at: every fourth, the first three and the last."""
    return [depth for depth in depths if depth < 4 or depth % 4 == 0 or depth == depths[-1]]
