"""Which of the candidates at a depth is taken: the fastest of those that learn as much, else that with the least error."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import inf

from fedact.compression import Method
from fedact.planner.problem import Methods, Problem
from fedact.planner.refinement import Candidate, Refinement
from fedact.planner.search import Solution
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_error import StepError, step_error

Items = frozenset[tuple[str, Method]]
"""The method of each saved input, by layer, as a key."""
ALIKE = 1.1
"""Estimated seconds that differ by less than this factor are the same."""


class Selection:
    """Takes one of some candidates, each of which is measured when its turn comes.

    refinement: returns what makes candidates fit with so much room for blocks in streams.
    """

    def __init__(self, problem: Problem, refinement: Callable[[int | None], Refinement], limit: SlowdownLimit) -> None:
        self.problem, self.refinement, self.limit = problem, refinement, limit
        self._errors: dict[tuple[int, Items, int | None], StepError | None] = {}

    def first_within(self, candidates: Iterable[Candidate], most_error: float) -> Solution | None:
        """Return the first candidate whose step has at most so much error, estimated and measured; None where none has.

        An estimate adds up what each saved input does alone: it may be wrong by half, either way.
        """
        for candidate in candidates:
            if candidate.draft.error > most_error or self._is_known_above(candidate, most_error):
                continue
            solution = self.refinement(candidate.room).best(candidate)
            if solution is None or solution.error > most_error:
                continue
            found = self._step_error(solution)
            if found and found.error > most_error:
                continue
            if admitted := self.limit.admit(solution._replace(step_error=found)):
                return admitted
        return None

    def _is_known_above(self, candidate: Candidate, most_error: float) -> bool:
        """Tell whether the step of the candidate's methods was measured to have more error in some room: in any it has."""
        size, items, in_streams = candidate.draft.micro_batch, _items(candidate.draft.methods), candidate.room is not None
        return any(
            found is not None and found.error > most_error
            for (examples, methods, room), found in self._errors.items()
            if (examples, methods, room is not None) == (size, items, in_streams)
        )

    def _step_error(self, solution: Solution) -> StepError | None:
        """Return the measured error of a solution's step."""
        place = solution.micro_batch, _items(solution.methods), solution.room
        if place not in self._errors:
            problem = replace(self.problem, room=solution.room)
            self._errors[place] = step_error(problem, solution.methods, solution.micro_batch, solution.observed)
        return self._errors[place]

    def least_error(self, candidates: Sequence[Candidate], negligible: float) -> Solution | None:
        """Return the measured candidate with the least error; of those that are hardly worse, the fastest."""
        enough = min((each.draft.error for each in candidates), default=0.0) + negligible
        if found := self.first_within(fastest_first(candidates, enough), enough):
            return found
        best: Solution | None = None
        for candidate in sorted(candidates, key=lambda each: each.draft.error):
            # A draft knows of no working memory: once measured, it may have more error, but not less.
            if best and candidate.draft.error >= best.error:
                break
            solution = self.refinement(candidate.room).best(candidate, best.error if best else inf)
            best = (self.limit.admit(solution) if solution else None) or best
        return best


def _items(methods: Methods) -> Items:
    return frozenset(methods.items())


def fastest_first(candidates: Sequence[Candidate], most_error: float) -> Iterator[Candidate]:
    """Yield the candidates with at most so much error, the fastest first; of those that are alike, that with less error."""
    found = [(each.seconds, each) for each in candidates if each.draft.error <= most_error]
    while found:
        longest = ALIKE * min(seconds for seconds, _ in found)
        first = min((pair for pair in found if pair[0] <= longest), key=lambda pair: (pair[1].draft.error, pair[0]))
        found = [pair for pair in found if pair is not first]
        yield first[1]
