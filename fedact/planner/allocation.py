"""Planner that chooses settings: a budget's bytes are allocated to the saved inputs for the least gradient error.

For every schedule and family of methods an allocation is drafted; the best drafts are measured, and one is taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from math import inf

from fedact.compression import AUTO
from fedact.planner.candidates import NEGLIGIBLE, Candidates
from fedact.planner.exact_step import exact_batch, fastest_exact
from fedact.planner.family import Family
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem, Schedule
from fedact.planner.profiles import Profiles
from fedact.planner.refinement import Candidate
from fedact.planner.schedules import Schedules
from fedact.planner.search import Solution, is_worth_it
from fedact.planner.selection import ALIKE, Selection, fastest_first
from fedact.planner.slowdown import SlowdownLimit


class ByteAllocation:
    """Chooses methods and settings, saved input by saved input, at any depth up to ``deepest``."""

    def __init__(self, problem: Problem, deepest: int, limit: SlowdownLimit) -> None:
        self.problem, self.limit = problem, limit
        self.candidates = Candidates(problem, deepest, limit.max_slowdown is not None)
        self._exact_solutions: dict[int, Solution | None] = {}

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        if self.problem.scope == "peak":
            if self.problem.method == AUTO and self._exact(depth):
                return dict.fromkeys(self.problem.trained_in_order(depth), 0.0)
            if not any(self.candidates.schedules_that_may_fit(depth)):
                return None
        if self.problem.method == AUTO:
            return self._least_errors(self.families, depth, 1)
        kinds = dict.fromkeys((each.recompute, each.in_streams) for each in self.schedules.preferred_first(depth))
        found = (self._compact_errors(self.candidates.families(*kind)[-1], depth) for kind in kinds)
        return next(filter(is_worth_it, found), None)

    def _compact_errors(self, family: Family, depth: int) -> Mapping[str, float] | None:
        """Return the least errors that are expected of a given method's most compact alternative."""
        # What it does with the whole batch is mostly enough, and part of the search anyway.
        whole = self._least_errors([family], depth, self.problem.batch_size)
        if whole and sum(whole.values()) <= NEGLIGIBLE * len(whole):
            return whole
        return self._least_errors([family], depth, 1)

    def _least_errors(self, families: Iterable[Family], depth: int, micro_batch: int) -> Mapping[str, float] | None:
        """Return the least errors that are expected in a micro-batch, by trained layer; None where nothing fits."""
        drafts = filter(None, [self.candidates.least_draft(family, depth, micro_batch) for family in families])
        least = min(drafts, key=lambda draft: draft.error, default=None)
        return least.layer_errors if least else None

    def solve(self, depth: int) -> Solution | None:
        negligible = NEGLIGIBLE * len(self.problem.trained(depth))
        if self.problem.method == AUTO:
            exact = self._exact(depth)
            if exact and self.problem.scope == "saved":
                return exact
            candidates = list(self._mixes(exact, depth))
            found = self.selection.first_within(fastest_first(candidates, negligible), negligible)
            return found or exact or self.selection.least_error(candidates, negligible)
        candidates = []
        for rivals in self._rivals(depth):
            if found := self.selection.first_within(rivals, negligible):
                return found
            candidates += rivals
        return self.selection.least_error(candidates, negligible)

    @property
    def may_stream(self) -> bool:
        """Whether blocks may run in streams."""
        return bool(self.schedules.rooms)

    def seconds(self, depth: int, schedule: Schedule) -> float:
        return self.schedules.seconds(schedule, depth)

    @property
    def schedules(self) -> Schedules:
        """How a batch may be run."""
        return self.candidates.schedules

    def smallest(self, depth: int) -> list[tuple[Schedule, Methods]]:
        ones = self.schedules.of_one(depth)
        return [(each, methods) for each in ones for methods in self.candidates.smallest(each, depth)]

    @property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes."""
        return self.candidates.peaks

    @property
    def profiles(self) -> Profiles:
        """What was measured of the model."""
        return self.candidates.profiles

    @cached_property
    def selection(self) -> Selection:
        """Takes one of the candidates."""
        return Selection(self.problem, self.candidates.refinement, self.limit)

    @cached_property
    def families(self) -> list[Family]:
        """The sets of methods of which a plan may mix one, of a given method the simplest first."""
        problem, schedules = self.problem, self.schedules
        free = problem.method == AUTO and self.limit.max_slowdown is not None
        recomputes = problem.least_recomputes if free else problem.recomputes
        kinds = [(recompute, False) for recompute in recomputes]
        kinds += [(schedules.recompute_in_streams, True)] if schedules.rooms else []
        return [family for kind in kinds for family in self.candidates.families(*kind)]

    def _rivals(self, depth: int) -> Iterator[list[Candidate]]:
        """Yield a given method's candidates of each schedule, the fastest first under a peak: errors are looked at later.

        Not those in micro-batches that are smaller than one that has less error than the next: what shares its factors among
        more examples has more error where there is room enough, and less where there is not.
        """
        least: dict[tuple[int, float], float] = {}
        for schedule in self.candidates.schedules_that_may_fit(depth, by_seconds=True):
            before = least.get(schedule.kind, inf)
            if before >= 0:
                yield (rivals := self.candidates.of(schedule, depth))
                error = min((each.draft.error for each in rivals), default=inf)
                least[schedule.kind] = -1.0 if before < error and self.limit.max_slowdown is None else error

    def _mixes(self, exact: Solution | None, depth: int) -> Iterator[Candidate]:
        """Yield the candidates of ``auto``; where exact training fits, those that are faster."""
        families, schedules = self.families, self.schedules
        known, enough = {(family.recompute, family.in_streams) for family in families}, inf
        if exact:
            recompute = max(method.recompute for method in exact.methods.values())
            enough = schedules.seconds(Schedule(exact.micro_batch, recompute, exact.room), depth) / ALIKE
        for schedule in self.candidates.schedules_that_may_fit(depth, enough):
            if (schedule.recompute, schedule.in_streams) in known:
                yield from self.candidates.of(schedule, depth)

    def _exact(self, depth: int) -> Solution | None:
        """Return the best exact step: under a budget of saved bytes with the whole batch, under a peak the fastest."""
        if depth not in self._exact_solutions:
            if self.problem.scope == "saved":
                found = exact_batch(self.problem, self.limit, depth)
            else:
                found = fastest_exact(self.problem, self.candidates.schedules, self.peaks, self.limit, depth)
            self._exact_solutions[depth] = found
        return self._exact_solutions[depth]
