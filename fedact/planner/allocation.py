"""Settings to choose: every micro-batch and family of methods is drafted, the best drafts are measured, one is taken."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.planner.cost_model import Costs, measure_costs
from fedact.planner.drafts import Draft
from fedact.planner.knapsack import MOST_WAYS
from fedact.planner.problem import Methods, Problem, evaluating, measure_fitting, measure_step
from fedact.planner.profile import BOUNDLESS, Family, Study, names_at
from fedact.planner.search import Found
from fedact.planner.slowdown import Pace

DERIVE = (3, 5)
"""How many convolutions back ``auto`` looks for a narrower tensor to make others again from."""
QUICK = 0
"""Where the time is bounded it also tries to keep every input: nothing has to be made again."""
NEGLIGIBLE = 1e-3
"""Errors of this much a trained layer are as good as none: of such plans the fastest is taken."""
EXAMPLES, ELEMENTS = 8, 6_000_000
"""Errors are measured on so many examples, fewer where they have more kept elements in all."""
SCAN_WAYS = 300
"""A coarser allocation is good enough to compare depths."""
ROUNDS, SLACK = 4, 0.01
"""A measured draft is shared out anew so many times, unless it leaves less than this share of the budget unused."""
ABOUT = 1.1
"""A whole batch takes about as many times what one example takes as it has examples."""


class _Candidate(NamedTuple):
    """A draft, where it comes from, and how many examples the frozen part would be run on at a time."""

    draft: Draft
    study: Study
    prefix_chunk: int


@dataclass(frozen=True, eq=False)
class Sharing:
    """Chooses the methods and their settings, tensor by tensor; no depth above ``deepest`` is asked about."""

    problem: Problem
    deepest: int
    pace: Pace
    studies: dict[tuple[Family, int, int], Study] = field(default_factory=dict)

    def errors_at(self, depth: int) -> Mapping[str, float] | None:
        studies = [self._study(family, self.deepest, 1) for family in self.families]
        drafts = [draft for study in studies for draft in self._drafts(study, depth, 1, SCAN_WAYS)]
        return min(drafts, key=lambda draft: draft.error).errors if drafts else None

    def at(self, depth: int) -> Found | None:
        whole = self._whole(depth)
        if whole:
            return whole
        best: Found | None = None
        for candidate, least in _best_first([*self._candidates(depth)], NEGLIGIBLE * len(self.problem.trained(depth))):
            enough = sum(best.added.values()) if best else float("inf")
            # A draft knows of no working memory: what it comes to may have more error, but not less.
            if least >= enough:
                break
            found = self._settled(candidate, enough)
            best = (self.pace.kept(found) if found else None) or best
        return best

    def _whole(self, depth: int) -> Found | None:
        """Return plain training, less what its gradient does not need, where the budget and the pace allow that."""
        methods, size = dict.fromkeys(names_at(self.problem, depth), Exact()), self.problem.batch_size
        one = measure_step(self.problem, methods, 1)
        if self.problem.held(one) * size > ABOUT * self.capacity:
            return None
        found = Found(depth, size, methods, measure_step(self.problem, methods, size), dict.fromkeys(methods, 0.0))
        return self.pace.kept(found) if self.problem.fits(found.memory) else None

    def coarsest(self, depth: int) -> list[Methods]:
        return [methods for family in self.families for methods in self._extremes(self._study(family, depth, 1), depth)]

    def _extremes(self, study: Study, depth: int) -> list[Methods]:
        """Return the methods of which one has the fewest bytes: with the smallest tensors, some work in more memory."""
        return study.extremes(depth)[: 1 if self.problem.scope == "saved" else None]

    @property
    def capacity(self) -> int:
        """The budget in bytes, or more than there will ever be."""
        return BOUNDLESS if self.problem.budget is None else self.problem.budget

    @cached_property
    def families(self) -> list[Family]:
        """What may be mixed in one plan."""
        method = self.problem.method
        if isinstance(method, Method):
            return [Family(method, method.derive)]
        return [Family(None, reach) for reach in (DERIVE if self.pace.max_slowdown is None else (QUICK, *DERIVE))]

    @cached_property
    def costs(self) -> Costs:
        """What the model's modules cost."""
        with evaluating(self.problem.plain) as model:
            return measure_costs(model, self.problem.x[:1])

    @cached_property
    def examples(self) -> int:
        """On how many examples the errors of methods that keep each one apart are measured."""
        return self.problem.affordable(self.problem.trained(self.deepest), EXAMPLES, ELEMENTS)

    def _study(self, family: Family, depth: int, micro_batch: int) -> Study:
        """Return the study of a family at this depth; where examples are kept together, in this micro-batch."""
        count = self.examples if family.by_example else micro_batch
        deepest = self._studied(family, self.deepest, count) if family.by_example else None
        return deepest if deepest and deepest.knows(depth) else self._studied(family, depth, count)

    def _studied(self, family: Family, depth: int, count: int) -> Study:
        if (family, depth, count) not in self.studies:
            self.studies[family, depth, count] = Study(self.problem, family, depth, self.costs, count)
        return self.studies[family, depth, count]

    def _candidates(self, depth: int) -> Iterator[_Candidate]:
        for family in self.families:
            for micro_batch in self.problem.halvings():
                study = self._study(family, depth, micro_batch)
                for prefix_chunk in self._chunks(study, depth, micro_batch):
                    for draft in self._drafts(study, depth, micro_batch):
                        yield _Candidate(draft, study, prefix_chunk)

    def _drafts(self, study: Study, depth: int, micro_batch: int, most_ways: int = MOST_WAYS) -> Iterator[Draft]:
        draft = study.draft(depth, micro_batch, self.capacity, most_ways)
        if draft:
            yield draft
        # One of them keeps a peak budget, as ``_chunks`` has seen.
        capacity = self.capacity if draft or self.problem.scope == "saved" else BOUNDLESS
        extremes = [True] if draft and draft.error else [] if draft else [True, False]
        others = (study.extreme(depth, micro_batch, capacity, gentle) for gentle in extremes)
        yield from (other for other in others if other)

    def _chunks(self, study: Study, depth: int, micro_batch: int) -> list[int]:
        """Return how the frozen part is to be run so that some methods keep the budget."""
        if self.problem.scope == "saved":
            return [0]
        for chunk in self.problem.chunks(depth, micro_batch):
            for methods in self._extremes(study, depth):
                if self.problem.fits(measure_fitting(self.problem, methods, micro_batch, chunk)):
                    return [chunk]
        return []

    def _settled(self, candidate: _Candidate, enough: float) -> Found | None:
        """Return the candidate measured, and shared out anew until it keeps the budget and leaves little of it unused.

        enough: only less error than this is of use.
        """
        draft, study, chunk = candidate
        best: Found | None = None
        for _ in range(ROUNDS):
            found = self._measured(draft, chunk)
            unused = self.capacity - self.problem.held(found.memory)
            if unused >= 0 and (best is None or draft.error < sum(best.added.values())):
                best = found
            if unused >= 0 and (draft.error == 0 or unused <= SLACK * self.capacity):
                break
            # What the step held besides the tensors, as it really was.
            room = self.capacity - (self.problem.held(found.memory) - draft.predicted_bytes)
            following = study.draft_within(draft.depth, draft.micro_batch, room)
            if following is None or following.methods == draft.methods or following.error >= enough:
                break
            draft = following
        best = best or self._extreme(candidate)
        return best if best and sum(best.added.values()) < enough else None

    def _extreme(self, candidate: _Candidate) -> Found | None:
        """Return the smallest methods, or the gentlest, where one of them keeps the budget."""
        (draft, study, chunk) = candidate
        for methods in self._extremes(study, draft.depth):
            given = study.draft_of(draft.depth, draft.micro_batch, methods)
            found = self._measured(given, chunk) if given else None
            if found and self.problem.fits(found.memory):
                return found
        return None

    def _measured(self, draft: Draft, chunk: int) -> Found:
        memory = measure_fitting(self.problem, draft.methods, draft.micro_batch, chunk)
        return Found(draft.depth, draft.micro_batch, draft.methods, memory, draft.added, chunk)


def _best_first(candidates: list[_Candidate], negligible: float) -> list[tuple[_Candidate, float]]:
    """Return those as good as the best first, the fastest of them first, then the others by their error.

    Each comes with the error above which another one may be better.
    """
    least = min((candidate.draft.error for candidate in candidates), default=0.0) + negligible

    def place(ranked: tuple[_Candidate, float]) -> tuple[float, float]:
        candidate, error = ranked
        return error, candidate.study.seconds(candidate.draft)

    return sorted(((candidate, max(candidate.draft.error, least)) for candidate in candidates), key=place)
