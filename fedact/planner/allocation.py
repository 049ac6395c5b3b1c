"""Planner that chooses settings: a budget's bytes are allocated to the saved inputs for the least gradient error.

For every micro-batch and family of methods an allocation is drafted; the best drafts are measured, and one is taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from math import inf

from fedact.compression import AUTO, Method
from fedact.compression.exact import Exact
from fedact.planner.drafts import Draft
from fedact.planner.exact_batch import exact_batch
from fedact.planner.family import Family
from fedact.planner.knapsack import MAX_STATES
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, Methods, PrefixSchedule, Problem
from fedact.planner.profile import UNBOUNDED, Profile
from fedact.planner.profiles import Profiles
from fedact.planner.refinement import Candidate, Refinement
from fedact.planner.search import Solution, is_worth_it
from fedact.planner.selection import ALIKE, Selection, fastest_first
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_structure import distinct_recomputes, layers_with_input

NEGLIGIBLE = 0.05
"""Errors up to this much a trained layer are as good as none: of such plans the fastest is taken. Relative to its squared
length, the gradient of a batch of 16 has a sampling error of 0.88 (the main job, 32 layers and 8 alike)."""
SCAN_STATES = 300
"""A coarser allocation is good enough to compare depths."""


class ByteAllocation:
    """Chooses methods and settings, saved input by saved input, at any depth up to ``deepest``."""

    def __init__(self, problem: Problem, deepest: int, limit: SlowdownLimit) -> None:
        self.problem, self.deepest, self.limit = problem, deepest, limit
        self.profiles = Profiles(problem, deepest)

    def expected_errors(self, depth: int) -> Mapping[str, float] | None:
        if self.problem.scope == "peak" and not self._may_fit(depth):
            return None
        if self.problem.method == AUTO:
            return self._errors(depth, 1, self.families)
        found = (self._compact_errors(depth, recompute) for recompute in self._recomputes(depth))
        return next(filter(is_worth_it, found), None)

    def _compact_errors(self, depth: int, recompute: int) -> Mapping[str, float] | None:
        """Return the least errors that are expected of a given method's most compact alternative."""
        family = self._families(recompute)[-1:]
        # What it does with the whole batch is mostly enough, and part of the search anyway.
        whole = self._errors(depth, self.problem.batch_size, family)
        if whole and sum(whole.values()) <= NEGLIGIBLE * len(whole):
            return whole
        return self._errors(depth, 1, family)

    def _may_fit(self, depth: int) -> bool:
        """Tell whether one example at a time may be within a peak budget."""
        profiles = (self.profiles.of(family, self.deepest, 1) for family in self.families)
        return any(self._schedule(profile, depth, 1) is not None for profile in profiles)

    def _errors(self, depth: int, micro_batch: int, families: Sequence[Family]) -> Mapping[str, float] | None:
        """Return the least errors that are expected in a micro-batch, by trained layer; None where nothing fits."""
        profiles = [self.profiles.of(family, self.deepest, micro_batch) for family in families]
        drafts = [draft for profile in profiles for draft in self._drafts(profile, depth, micro_batch, SCAN_STATES)]
        return min(drafts, key=lambda draft: draft.error).layer_errors if drafts else None

    def solve(self, depth: int) -> Solution | None:
        if self.problem.method == AUTO and (exact := exact_batch(self.problem, self.peaks, self.limit, depth)):
            return exact
        negligible, candidates = NEGLIGIBLE * len(self.problem.trained(depth)), list[Candidate]()
        for rivals in self._rivals(depth):
            first = fastest_first(rivals, negligible) if self.problem.method == AUTO else rivals
            if found := self.selection.first_within(first, negligible):
                return found
            candidates += rivals
        return self.selection.least_error(candidates, negligible)

    def smallest_methods(self, depth: int) -> list[Methods]:
        profiles = (self.profiles.of(family, depth, 1) for family in self.families)
        return [methods for profile in profiles for methods in self.refinement.extremes(profile, depth, 1)]

    @property
    def capacity(self) -> int:
        """The budget in bytes, or more than there will ever be."""
        return self.refinement.capacity

    @cached_property
    def peaks(self) -> PeakPrediction:
        """Predicts peak bytes."""
        return PeakPrediction(self.problem)

    @cached_property
    def refinement(self) -> Refinement:
        """Makes candidates fit."""
        return Refinement(self.problem, self.peaks)

    @cached_property
    def selection(self) -> Selection:
        """Takes one of the candidates."""
        return Selection(self.problem, self.refinement, self.limit)

    @cached_property
    def families(self) -> list[Family]:
        """The sets of methods of which a plan may mix one, of a given method the simplest first."""
        given = isinstance(self.problem.method, Method) or self.limit.max_slowdown is None
        recomputes = self.problem.recomputes if given else self.problem.least_recomputes
        return [family for recompute in recomputes for family in self._families(recompute)]

    def _families(self, recompute: int) -> list[Family]:
        """Return the sets of methods with one recompute."""
        method = self.problem.method
        return [Family(each, recompute) for each in (method.alternatives if isinstance(method, Method) else [None])]

    def _recomputes(self, depth: int) -> Iterator[int]:
        """Yield what may be made again at a depth, the preferred first, and each but once."""
        return distinct_recomputes(self.problem, lambda recompute: self.profiles.structure(recompute, depth))

    def _rivals(self, depth: int) -> Iterator[list[Candidate]]:
        """Yield candidates: of ``auto`` all together, of a given method those of each micro-batch, the fastest first.

        Not those of a given method's micro-batches that are smaller than one that has less error than the next: what shares
        its factors among more examples has more error where there is room enough, and less where there is not.
        """
        sizes = list(self.problem.micro_batches())
        if self.problem.method == AUTO:
            yield list(self._mixes(depth, sizes))
            return
        for recompute in self._recomputes(depth):
            yield from self._rivals_with(recompute, depth, sizes)

    def _rivals_with(self, recompute: int, depth: int, sizes: Sequence[int]) -> Iterator[list[Candidate]]:
        """Yield a given method's candidates with one recompute."""
        least = inf
        for size in sizes:
            rivals: list[Candidate] = []
            # What the most compact alternative cannot do, the simpler ones cannot either.
            negligible, compact = NEGLIGIBLE * len(self.problem.trained(depth)), None
            for family in reversed(self._families(recompute)):
                if compact and not self._may_do_as_well(family, compact, depth, size, negligible):
                    break
                found = list(self._candidates(family, depth, size))
                rivals, compact = found + rivals, family
                if min((each.draft.error for each in found), default=inf) > negligible:
                    break
            yield rivals
            error = min((each.draft.error for each in rivals), default=inf)
            if least < error and self.limit.max_slowdown is None:
                return
            least = error

    def _may_do_as_well(self, family: Family, compact: Family, depth: int, micro_batch: int, most_error: float) -> bool:
        """Tell whether a simpler family may have no more error than so much, by the errors that a compact one has."""
        if self._is_too_large(family, depth, micro_batch):
            return False
        profile, rival = (self.profiles.of(each, depth, micro_batch) for each in (family, compact))
        drafts = self._drafts(profile.with_errors(rival.errors), depth, micro_batch, SCAN_STATES)
        return any(draft.error <= most_error for draft in drafts)

    def _mixes(self, depth: int, sizes: Sequence[int]) -> Iterator[Candidate]:
        """Yield the candidates of ``auto``; where exact training fits a peak, of others those that are faster."""
        exact = list(self._exact_candidates(depth, sizes)) if self.problem.scope == "peak" else []
        yield from exact
        enough = min((each.profile.seconds(each.draft) for each in exact), default=inf) / ALIKE
        for family, size in product(self.families, sizes):
            if exact and self.limit.max_slowdown is None:
                profile = self.profiles.of(family, depth, size)
                if profile.seconds(profile.exact(depth, size)) >= enough:
                    continue
            yield from self._candidates(family, depth, size)

    def _exact_candidates(self, depth: int, sizes: Sequence[int]) -> Iterator[Candidate]:
        """Yield exact training in the largest micro-batch with which its peak fits, the less is made again the sooner."""
        layers, largest = layers_with_input(self.problem, depth), 0
        for family, size in product(self.families, sizes):
            exact = dict.fromkeys(layers, Exact().recomputing(family.recompute))
            if size > largest and (prefix := self.peaks.schedule([exact], size)) is not None:
                profile, largest = self.profiles.of(family, depth, size), size
                yield Candidate(profile.exact(depth, size), profile, prefix)

    def _is_too_large(self, family: Family, depth: int, micro_batch: int) -> bool:
        """Tell whether a step is over the budget whatever lossy methods it has."""
        if self.problem.scope == "peak":
            return self.peaks.is_too_large(layers_with_input(self.problem, depth), family.recompute, micro_batch)
        return self.profiles.structure(family.recompute, depth).least_bytes(depth, micro_batch) > self.capacity

    def _candidates(self, family: Family, depth: int, micro_batch: int) -> Iterator[Candidate]:
        if self._is_too_large(family, depth, micro_batch):
            return
        profile = self.profiles.of(family, depth, micro_batch)
        prefix = self._schedule(profile, depth, micro_batch)
        if prefix is not None:
            for draft in self._drafts(profile, depth, micro_batch):
                candidate = Candidate(draft, profile, prefix)
                found = candidate if self.problem.scope == "saved" else self.refinement.predicted(candidate)
                if found:
                    yield found

    def _drafts(self, profile: Profile, depth: int, micro_batch: int, max_states: int = MAX_STATES) -> Iterator[Draft]:
        """Yield the optimal allocation, and the smallest or gentlest methods where these may do better."""
        draft = profile.draft(depth, micro_batch, self.capacity, max_states)
        if draft:
            yield draft
        # One of the extremes is within a peak budget, as ``_schedule`` has measured.
        capacity = self.capacity if draft or self.problem.scope == "saved" else UNBOUNDED
        extremes = [True] if draft and draft.error else [] if draft else [True, False]
        others = (profile.extreme(depth, micro_batch, capacity, gentle) for gentle in extremes)
        yield from (other for other in others if other)

    def _schedule(self, profile: Profile, depth: int, micro_batch: int) -> PrefixSchedule | None:
        """Return the fastest prefix with which some methods are within the budget, None where there is none."""
        if self.problem.scope == "saved":
            return WHOLE
        extremes = self.refinement.extremes(profile, depth, micro_batch)
        return self.peaks.schedule(extremes, micro_batch)
