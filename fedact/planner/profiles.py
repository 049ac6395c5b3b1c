"""Every profile of a family of methods, made at the first request."""

from functools import cached_property

from fedact.planner.cost_model import ModuleCosts, measure_costs
from fedact.planner.error_table import Rows
from fedact.planner.exact_steps import ExactSteps
from fedact.planner.family import Family
from fedact.planner.problem import Problem, evaluating
from fedact.planner.profile import Profile
from fedact.planner.step_error import ELEMENTS, EXAMPLES
from fedact.planner.step_structure import StepStructure


class Profiles:
    """Remembers every profile, by depth and number of examples; deepest: the most convolutions that are trained."""

    def __init__(self, problem: Problem, deepest: int) -> None:
        self.problem, self.deepest = problem, deepest
        self._profiles: dict[tuple[Family, int, int], Profile] = {}
        self._structures: dict[tuple[int, int], StepStructure] = {}
        self._exact_steps: dict[tuple[int, int, int], ExactSteps] = {}
        self._rows: dict[tuple[int, int], dict[int, Rows]] = {}

    @cached_property
    def costs(self) -> ModuleCosts:
        """The operations of the model's modules."""
        with evaluating(self.problem.plain_model) as model:
            return measure_costs(model, self.problem.x[:1])

    @cached_property
    def examples(self) -> int:
        """How many examples errors are measured on, for methods that compress every example by itself."""
        return self.problem.example_count(self.problem.trained(self.deepest), EXAMPLES, ELEMENTS)

    def of(self, family: Family, depth: int, micro_batch: int) -> Profile:
        """Return a family's profile: the deepest where it covers the depth, and is there or holds in every micro-batch."""
        count = self.examples if family.per_example else micro_batch
        deepest_first = family.per_example or (family, self.deepest, count) in self._profiles
        for each in (self.deepest, depth) if deepest_first else (depth,):
            if (family, each, count) not in self._profiles:
                self._profiles[family, each, count] = Profile(family, self._steps(family.recompute, each, count), self.costs)
            profile = self._profiles[family, each, count]
            if profile.covers(depth):
                break
        return profile

    def _steps(self, recompute: int, depth: int, count: int) -> ExactSteps:
        """Return the exact steps that the profiles of all families with one ``recompute`` share."""
        if (recompute, depth, count) not in self._exact_steps:
            rows = self._rows.setdefault((depth, count), {})
            self._exact_steps[recompute, depth, count] = ExactSteps(self.structure(recompute, depth), count, rows)
        return self._exact_steps[recompute, depth, count]

    def structure(self, recompute: int, depth: int) -> StepStructure:
        """Return what a step saves at the depths up to one, at one ``recompute``."""
        if (recompute, depth) not in self._structures:
            self._structures[recompute, depth] = StepStructure(self.problem, recompute, depth)
        return self._structures[recompute, depth]
