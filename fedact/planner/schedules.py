"""How a batch may be run: how many examples at a time, what is made again, in how much room; and how long it takes."""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product
from math import inf

from fedact.compression import AUTO, Method
from fedact.compression.exact import Exact
from fedact.compression.quantize import Quantize
from fedact.nn.streams.find import find
from fedact.planner.cost_model import step_seconds
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import Methods, Problem, Schedule
from fedact.planner.profiles import Profiles
from fedact.planner.stand_in import structure_of
from fedact.planner.step_memory import floor_bytes
from fedact.planner.step_structure import distinct_recomputes, layers_with_input

SHARES, FEW_SHARES = (2, 4, 8, 16, 32), (2, 8, 32)
"""The rooms of an example are the floor divided by these: the more room, the fewer groups of channels, and the faster.
Few of them for methods with free settings, of which every room has candidates of its own."""

EXACT, QUICK = Exact(), Quantize(bits=8)


class Schedules:
    """All schedules of a problem, those in streams for a budget of peak bytes alone.

    in_time: whether time is bounded too, so that making nothing again must be among them.
    """

    def __init__(self, problem: Problem, profiles: Profiles, in_time: bool = False) -> None:
        self.problem, self.profiles, self.in_time = problem, profiles, in_time
        self._recomputes: dict[int, list[int]] = {}
        self._seconds: dict[tuple[int, Schedule, Method], float] = {}

    @cached_property
    def rooms(self) -> tuple[int, ...]:
        """What an example's wide maps may take in streams, the most first; none where nothing runs in streams."""
        problem = self.problem
        if problem.scope == "saved" or problem.budget is None or problem.is_adapted:
            return ()
        if not may_stream(problem.method) or not self._blocks(problem):
            return ()
        free = isinstance(problem.method, Method) and problem.method.has_free_settings
        return tuple(max(1, floor_bytes(problem) // share) for share in (FEW_SHARES if free else SHARES))

    def _blocks(self, problem: Problem) -> bool:
        return bool(find(problem.plain_model))

    def recomputes(self, depth: int) -> list[int]:
        """Return what may be made again in the fast engine, the preferred first, and each but once."""
        if depth not in self._recomputes:
            free = self.is_by_seconds or (self.in_time and self.problem.method == AUTO)
            wanted = self.problem.least_recomputes if free else self.problem.recomputes
            found = distinct_recomputes(wanted, lambda recompute: self.profiles.structure(recompute, depth))
            self._recomputes[depth] = list(found)
        return self._recomputes[depth]

    @cached_property
    def is_by_seconds(self) -> bool:
        """Whether nothing but time tells schedules apart: under a peak, where gradients are exact, or may be."""
        method = self.problem.method
        return self.problem.scope == "peak" and (isinstance(method, str) or method.traits.keeps_input)

    def preferred_first(self, depth: int, by_seconds: bool = False) -> list[Schedule]:
        """Return all schedules, those that make nothing again first, then what is faster; without loss the fastest first.

        Under a budget of saved bytes the larger micro-batch comes first, and what makes less again before that. by_seconds:
        whether the fastest comes first with loss too.
        """
        sizes, recomputes = list(self.problem.micro_batches()), self.recomputes(depth)
        found = [Schedule(size, recompute) for recompute, size in product(recomputes, sizes)]
        if self.problem.scope == "saved" or self.problem.budget is None:
            return found
        found += [Schedule(size, self.recompute_in_streams, room * size) for room, size in product(self.rooms, sizes)]

        def rank(schedule: Schedule) -> tuple[bool, float]:
            again = schedule.in_streams or schedule.recompute != recomputes[0]
            return again and not (by_seconds or self.is_by_seconds), self.seconds(schedule, depth)

        return sorted(found, key=rank)

    def of_one(self, depth: int) -> list[Schedule]:
        """Return the schedules of one example at a time that may take the least bytes, the preferred first."""
        found = [each for each in self.preferred_first(depth) if each.micro_batch == 1]
        return [each for each in found if not each.in_streams or each.room == self.rooms[-1]]

    @property
    def recompute_in_streams(self) -> int:
        """The recompute beside streams, which make their wide tensors again anyway: none, where that is left to the plan."""
        given, *others = self.problem.recomputes
        return 0 if others else given

    def seconds(self, schedule: Schedule, depth: int, method: Method = EXACT) -> float:
        """Return the estimated seconds of a batch with one method for all saved inputs."""
        key = depth, schedule, method
        if key not in self._seconds:
            structure = self.profiles.structure(schedule.recompute, depth, schedule.in_streams)
            saved, costs = structure.saved_inputs(depth), self.profiles.costs
            methods = dict.fromkeys((each.key for each in saved), method)
            blocks = self.profiles.blocks if schedule.in_streams else ()
            path, sizes = structure.gradient_path(depth), (schedule.micro_batch, self.problem.batch_size)
            elements = {name: costs.shapes[name][1:].numel() if name in costs.shapes else 0 for name in methods}
            found = step_seconds(costs, path, saved, methods, elements, *sizes, blocks, schedule.room or 0)
            self._seconds[key] = found
        return self._seconds[key]

    def that_may_fit(
        self,
        depth: int,
        peaks: PeakPrediction,
        kept_by: Callable[[int], Methods] | None = None,
        below: float = inf,
        by_seconds: bool = False,
    ) -> Iterator[Schedule]:
        """Yield the schedules that no step on a few examples rules out under a peak, the preferred first.

        peaks: of any room. kept_by: returns the methods with a recompute, if they keep their inputs. below: seconds of a
        batch that are too many, with the fastest method that loses something. by_seconds: as of ``preferred_first``.
        """
        ruled_out: list[Schedule] = []
        layers = layers_with_input(self.problem, depth)

        def is_ruled_out(schedule: Schedule) -> bool:
            recompute, size, found = schedule.recompute, schedule.micro_batch, peaks.in_room(schedule.room)
            if kept_by is not None:
                return found.rules_out(kept_by(recompute), size)
            if below < inf and self._kept_is_too_little(schedule, depth, found):
                return True
            return found.is_too_large(layers, recompute, size)

        for schedule in self.preferred_first(depth, by_seconds):
            if below < inf and self.seconds(schedule, depth, QUICK) >= below:
                continue
            if any(schedule.asks_as_much(other) for other in ruled_out):
                continue
            if is_ruled_out(schedule):
                ruled_out.append(schedule)
            else:
                yield schedule

    def _kept_is_too_little(self, schedule: Schedule, depth: int, peaks: PeakPrediction) -> bool:
        """Tell whether exact training is over the budget even without its saved inputs."""
        exact = dict.fromkeys(layers_with_input(self.problem, depth), EXACT.recomputing(schedule.recompute))
        structure = self.profiles.structure(schedule.recompute, depth, schedule.in_streams)
        kept = schedule.micro_batch * sum(x.nbytes for x in structure.inputs.values())
        return not self.problem.within_budget(int(peaks.lower_bound(structure_of(exact), schedule.micro_batch) - kept))


def may_stream(method: Method | str) -> bool:
    """Tell whether blocks may run in streams with a method: not with what keeps everything, or recomputes in segments."""
    return isinstance(method, str) or (method.traits.saves_less and not method.segment)
