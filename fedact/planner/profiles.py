"""Every profile of a family of methods, made at the first request."""

from dataclasses import replace
from functools import cached_property

from fedact.compression.exact import Exact
from fedact.nn.surgery import install
from fedact.planner.cost_model import ModuleCosts, StreamedBlock, measure_costs
from fedact.planner.error_table import Rows
from fedact.planner.exact_steps import ExactSteps
from fedact.planner.family import Family
from fedact.planner.problem import Problem, evaluating
from fedact.planner.profile import Profile
from fedact.planner.step_error import ELEMENTS, EXAMPLES
from fedact.planner.step_structure import StepStructure, layers_with_input

AMPLE = 2**40
"""Room in bytes for any block's wide maps: of what a step saves and errs, none depends on how much it is."""


class Profiles:
    """Remembers every profile, by depth and number of examples; deepest: the most convolutions that are trained."""

    def __init__(self, problem: Problem, deepest: int) -> None:
        self.problem, self.deepest = problem, deepest
        self._profiles: dict[tuple[Family, int, int], Profile] = {}
        self._structures: dict[tuple[int, int, bool], StepStructure] = {}
        self._exact_steps: dict[tuple[int, bool, int, int], ExactSteps] = {}
        self._rows: dict[tuple[int, int], dict[int, Rows]] = {}

    @cached_property
    def costs(self) -> ModuleCosts:
        """The operations of the model's modules."""
        with evaluating(self.problem.plain_model) as model:
            return measure_costs(model, self.problem.x[:1])

    @cached_property
    def blocks(self) -> tuple[StreamedBlock, ...]:
        """The blocks that run in streams where there is room."""
        methods = dict.fromkeys(layers_with_input(self.problem, self.deepest), Exact())
        return self.costs.blocks(install(self.problem.model, methods, room=AMPLE))

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
                steps = self._steps(family, each, count)
                blocks = self.blocks if family.in_streams else ()
                self._profiles[family, each, count] = Profile(family, steps, self.costs, blocks)
            profile = self._profiles[family, each, count]
            if profile.covers(depth):
                break
        return profile

    def _steps(self, family: Family, depth: int, count: int) -> ExactSteps:
        """Return the exact steps that the profiles of all families share that make the same again."""
        key = (family.recompute, family.in_streams, depth, count)
        if key not in self._exact_steps:
            rows = self._rows.setdefault((depth, count), {})
            structure = self.structure(family.recompute, depth, family.in_streams)
            self._exact_steps[key] = ExactSteps(structure, count, rows)
        return self._exact_steps[key]

    def structure(self, recompute: int, depth: int, in_streams: bool = False) -> StepStructure:
        """Return what a step saves at the depths up to one, at one ``recompute``, in whole maps or in streams."""
        key = (recompute, depth, in_streams)
        if key not in self._structures:
            problem = replace(self.problem, room=AMPLE) if in_streams else self.problem
            self._structures[key] = StepStructure(problem, recompute, depth)
        return self._structures[key]
