"""A draft allocated anew until its step fits the budget and leaves little of it unused."""

from collections.abc import Callable

from fedact.planner.drafts import Draft
from fedact.planner.profile import Profile

REFINEMENTS, SLACK = 4, 0.01
"""A draft is allocated anew at most so often, unless it leaves less than this share of the budget unused."""


def refined(draft: Draft, profile: Profile, capacity: int, size_of: Callable[[Draft], int], enough: float) -> Draft | None:
    """Return the best of a few allocations whose step is within the capacity (bytes), None where none is.

    size_of: the bytes of a draft's step, in the budget's scope. enough: no further one is tried unless its error is less.
    """
    best: Draft | None = None
    for _ in range(REFINEMENTS):
        size = size_of(draft)
        unused = capacity - size
        if unused >= 0 and (best is None or draft.error < best.error):
            best = draft
        if unused >= 0 and (draft.error == 0 or unused <= SLACK * capacity):
            break
        # What the step holds besides the saved inputs is now known.
        following = profile.draft_within(draft.depth, draft.micro_batch, capacity - (size - draft.predicted_bytes))
        if following is None or following.methods == draft.methods or following.error >= enough:
            break
        draft = following
    return best
