"""A candidate made to fit: allocated anew until its step is within the budget and leaves little of it unused."""

from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple

from fedact.planner.drafts import Draft
from fedact.planner.observed_step import ObservedStep
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, PrefixSchedule, Problem
from fedact.planner.profile import UNBOUNDED, Profile
from fedact.planner.search import Solution
from fedact.planner.step_memory import measure_within_budget

REFINEMENTS, SLACK = 4, 0.01
"""A draft is allocated anew at most so often, unless it leaves less than this share of the budget unused."""
CHECKS = 3
"""A predicted peak is measured, and the plan repaired where it was wrong, at most so often."""


class Candidate(NamedTuple):
    """A draft, the profile it comes from, how the frozen prefix would run, and the room of blocks in streams, if any do."""

    draft: Draft
    profile: Profile
    prefix: PrefixSchedule
    room: int | None = None

    @property
    def seconds(self) -> float:
        """Estimated, of a batch."""
        return self.profile.seconds(self.draft, self.room)


class Refinement:
    """Makes candidates fit a problem's budget; saved bytes are measured, peaks predicted and then measured."""

    def __init__(self, problem: Problem, peaks: PeakPrediction) -> None:
        self.problem, self.peaks = problem, peaks

    @property
    def capacity(self) -> int:
        """The budget in bytes, or more than there will ever be."""
        return UNBOUNDED if self.problem.budget is None else self.problem.budget

    def extremes(self, profile: Profile, depth: int, micro_batch: int) -> list[Methods]:
        """Return candidates for the fewest bytes: the smallest methods; for a peak also the gentlest."""
        return profile.extremes(depth, micro_batch)[: 1 if self.problem.scope == "saved" else None]

    def predicted(self, candidate: Candidate) -> Candidate | None:
        """Return the candidate allocated anew until its peak is predicted to fit, else one of the extremes where it may."""
        draft, profile, prefix, _ = candidate
        found = refined(draft, profile, self.capacity, lambda each: self._predicted(each, prefix), inf)
        found = found or next(self._extreme_drafts(candidate), None)
        return candidate._replace(draft=found) if found else None

    def best(self, candidate: Candidate, enough: float = inf) -> Solution | None:
        """Return the candidate measured, and allocated anew until it fits and leaves little of the budget unused.

        enough: None is returned unless the error is less than this.
        """
        find = self._measured_best if self.problem.scope == "saved" else self._checked_best
        best = find(candidate, enough) or self._fitting_extreme(candidate)
        return best if best and best.error < enough else None

    def _measured_best(self, candidate: Candidate, enough: float) -> Solution | None:
        """Return the best of a few allocations, each measured, None where none fits."""
        measured: dict[int, Solution] = {}

        def size_of(draft: Draft) -> int:
            measured[id(draft)] = self._measured(draft, candidate.prefix)
            return self.problem.bytes_in_scope(measured[id(draft)].memory)

        best = refined(candidate.draft, candidate.profile, self.capacity, size_of, enough)
        return measured[id(best)] if best else None

    def _checked_best(self, candidate: Candidate, enough: float) -> Solution | None:
        """Return the allocation that is predicted to be best, measured; repaired where the prediction was wrong."""
        draft, profile, prefix, _ = candidate
        best: Solution | None = None
        excess = 0
        for _ in range(CHECKS):
            found = refined(draft, profile, self.capacity, lambda each: self._predicted(each, prefix) + excess, enough)  # noqa: B023
            if found is None or (best and found.error >= best.error):
                break
            draft, solution = found, self._measured(found, prefix)
            size = self.problem.bytes_in_scope(solution.memory)
            best = solution if size <= self.capacity else best
            if size <= self.capacity and (draft.error == 0 or self.capacity - size <= SLACK * self.capacity):
                break
            excess = size - self._predicted(draft, prefix)
        return best

    def _predicted(self, draft: Draft, prefix: PrefixSchedule) -> int:
        """Return the peak bytes that a draft's step is predicted to have."""
        return self.peaks.peak_bytes(draft.methods, draft.micro_batch, prefix)

    def _fitting_extreme(self, candidate: Candidate) -> Solution | None:
        """Return the smallest methods, else the gentlest, where they fit the budget."""
        for extreme in self._extreme_drafts(candidate):
            solution = self._measured(extreme, candidate.prefix)
            if self.problem.fits(solution.memory):
                return solution
        return None

    def _extreme_drafts(self, candidate: Candidate) -> Iterator[Draft]:
        """Yield the drafts of the smallest and of the gentlest methods, where their peak may fit."""
        draft, profile, prefix, _ = candidate
        for methods in self.extremes(profile, draft.depth, draft.micro_batch):
            may_fit = self.problem.scope == "saved" or self.peaks.may_fit(methods, draft.micro_batch, prefix)
            if may_fit and (extreme := profile.draft_of(draft.depth, draft.micro_batch, methods)):
                yield extreme

    def _measured(self, draft: Draft, prefix: PrefixSchedule) -> Solution:
        # What counts operations takes part in the peak.
        observed = ObservedStep(draft.methods) if self.problem.scope == "saved" else None
        problem, size, methods = self.problem, draft.micro_batch, draft.methods
        memory = measure_within_budget(problem, methods, size, prefix, observed)
        found = Solution(draft.depth, size, methods, memory, draft.input_errors, prefix, observed=observed)
        return found._replace(room=problem.room)


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
        room = capacity - (size - draft.predicted_bytes)
        following = profile.draft_within(draft.depth, draft.micro_batch, room)
        if following is None and best is not None:
            # What methods work with grows with what they store: halfway to what fits.
            room = (best.predicted_bytes + draft.predicted_bytes) // 2
            following = profile.draft_within(draft.depth, draft.micro_batch, room)
        if following is None or following.methods == draft.methods or following.error >= enough:
            break
        draft = following
    return best
