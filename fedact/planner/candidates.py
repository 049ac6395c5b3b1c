"""Candidates for a plan: of one schedule, what an allocation of the budget's bytes drafts for it."""

from collections.abc import Iterator
from functools import cached_property
from math import inf

from fedact.compression import Method
from fedact.planner.drafts import Draft
from fedact.planner.family import Family
from fedact.planner.knapsack import MAX_STATES
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem, Schedule
from fedact.planner.profile import UNBOUNDED, Profile
from fedact.planner.profiles import Profiles
from fedact.planner.refinement import Candidate, Refinement
from fedact.planner.schedules import Schedules

NEGLIGIBLE = 0.05
"""Errors up to this much a trained layer are as good as none: of such plans the fastest is taken. Relative to its squared
length, the gradient of a batch of 16 has a sampling error of 0.88 (the main job, 32 layers and 8 alike)."""
SCAN_STATES = 300
"""A coarser allocation is good enough to compare depths, and alternatives."""


class Candidates:
    """Drafts candidates at any depth up to ``deepest``; in_time: whether time is bounded too."""

    def __init__(self, problem: Problem, deepest: int, in_time: bool) -> None:
        self.problem, self.deepest = problem, deepest
        self.profiles, self.peaks = Profiles(problem, deepest), PeakPrediction(problem)
        self.schedules = Schedules(problem, self.profiles, in_time)

    @property
    def capacity(self) -> int:
        """The budget in bytes, or more than there will ever be."""
        return UNBOUNDED if self.problem.budget is None else self.problem.budget

    def families(self, recompute: int, in_streams: bool = False) -> list[Family]:
        """Return the sets of methods of which a plan may mix one, of a given method the simplest first."""
        method = self.problem.method
        alternatives = method.alternatives if isinstance(method, Method) else [None]
        return [Family(each, recompute, in_streams) for each in alternatives]

    def schedules_that_may_fit(self, depth: int, below: float = inf, by_seconds: bool = False) -> Iterator[Schedule]:
        """Yield the schedules that a method with loss may have within the budget, the preferred first.

        below: seconds of a batch that are too many under a peak. by_seconds: whether there the fastest come first.
        """
        if self.problem.scope == "peak":
            yield from self.schedules.that_may_fit(depth, self.peaks, below=below, by_seconds=by_seconds)
            return
        for each in self.schedules.preferred_first(depth):
            if self.profiles.structure(each.recompute, depth).least_bytes(depth, each.micro_batch) <= self.capacity:
                yield each

    def of(self, schedule: Schedule, depth: int) -> list[Candidate]:
        """Return a schedule's candidates, of a given method those of its simpler alternatives first.

        What the most compact alternative cannot do, the simpler ones cannot either.
        """
        negligible, compact = NEGLIGIBLE * len(self.problem.trained(depth)), None
        rivals: list[Candidate] = []
        for family in reversed(self.families(schedule.recompute, schedule.in_streams)):
            if compact and not self._may_do_as_well(family, compact, depth, schedule.micro_batch, negligible):
                break
            found = list(self._of_family(family, schedule, depth))
            rivals, compact = found + rivals, family
            if min((each.draft.error for each in found), default=inf) > negligible:
                break
        return rivals

    def _may_do_as_well(self, family: Family, compact: Family, depth: int, micro_batch: int, most_error: float) -> bool:
        """Tell whether a simpler family may have no more error than so much, by the errors that a compact one has."""
        profile, rival = (self.profiles.of(each, depth, micro_batch) for each in (family, compact))
        drafts = self._drafts(profile.with_errors(rival.errors), depth, micro_batch, SCAN_STATES)
        return any(draft.error <= most_error for draft in drafts)

    def _of_family(self, family: Family, schedule: Schedule, depth: int) -> Iterator[Candidate]:
        size, refinement = schedule.micro_batch, self.refinement(schedule.room)
        profile = self.profiles.of(family, depth, size)
        prefix = self._prefix(profile, depth, schedule)
        if prefix is not None:
            for draft in self._drafts(profile, depth, size):
                candidate = Candidate(draft, profile, prefix, schedule.room)
                found = candidate if self.problem.scope == "saved" else refinement.predicted(candidate)
                if found:
                    yield found

    def least_draft(self, family: Family, depth: int, micro_batch: int) -> Draft | None:
        """Return the draft of the least error, roughly, of all with the methods of a family, None where there is none."""
        profile = self.profiles.of(family, self.deepest, micro_batch)
        drafts = self._drafts(profile, depth, micro_batch, SCAN_STATES)
        return min(drafts, key=lambda draft: draft.error, default=None)

    def _drafts(self, profile: Profile, depth: int, micro_batch: int, max_states: int = MAX_STATES) -> Iterator[Draft]:
        """Yield the optimal allocation, and the smallest or gentlest methods where these may do better."""
        draft = profile.draft(depth, micro_batch, self.capacity, max_states)
        if draft:
            yield draft
        # One of the extremes is within a peak budget, as ``_prefix`` has found.
        capacity = self.capacity if draft or self.problem.scope == "saved" else UNBOUNDED
        extremes = [True] if draft and draft.error else [] if draft else [True, False]
        others = (profile.extreme(depth, micro_batch, capacity, gentle) for gentle in extremes)
        yield from (other for other in others if other)

    def _prefix(self, profile: Profile, depth: int, schedule: Schedule) -> PrefixSchedule | None:
        """Return the fastest prefix with which some methods are within the budget, None where there is none."""
        if self.problem.scope == "saved":
            return WHOLE
        extremes = self.refinement(schedule.room).extremes(profile, depth, schedule.micro_batch)
        return self.peaks.in_room(schedule.room).schedule(extremes, schedule.micro_batch)

    def smallest(self, schedule: Schedule, depth: int) -> list[Methods]:
        """Return candidates for a schedule's step with the fewest bytes."""
        profiles = (self.profiles.of(each, depth, 1) for each in self.families(schedule.recompute, schedule.in_streams))
        return [methods for profile in profiles for methods in self.refinement(None).extremes(profile, depth, 1)]

    @cached_property
    def _refinements(self) -> dict[int | None, Refinement]:
        return {}

    def refinement(self, room: int | None) -> Refinement:
        """Return what makes candidates fit, with so much room for blocks in streams."""
        if room not in self._refinements:
            peaks = self.peaks.in_room(room)
            self._refinements[room] = Refinement(peaks.problem, peaks)
        return self._refinements[room]
