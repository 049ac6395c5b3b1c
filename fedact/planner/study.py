"""What is measured once about one family of methods on one model, for every depth and micro-batch to be drafted from."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.compression.quantize import Quantize
from fedact.compression.transform import Transform
from fedact.dataflow import downstream
from fedact.planner.drafts import Draft, Way, draft, of_group, ways_of
from fedact.planner.groups import Group, groups_of
from fedact.planner.knapsack import MOST_WAYS
from fedact.planner.problem import Methods, Problem, measure_step
from fedact.planner.sensitivity import Sensitivity, measure_sensitivity
from fedact.planner.work import Costs, step_seconds
from fedact.surgery import assign, smooth_activations


@dataclass(frozen=True)
class Family:
    """Methods that one plan may mix: those that ``derive`` as many convolutions.

    method: the one that was given without settings; None for all that ``auto`` mixes.
    """

    method: Method | None
    derive: int

    def ladder(self, x: Tensor) -> list[Method]:
        """Return the methods for a kept tensor like x."""
        if self.method is not None:
            return list(self.method.for_dimensions(x.dim()).levels(x).values())
        packed = [Quantize(bits=bits, derive=self.derive) for bits in (8, 4)]
        exact, *coded = Transform(derive=self.derive).levels(x).values()
        return [exact, *packed, *coded]

    @property
    def by_example(self) -> bool:
        """Whether errors measured in one micro-batch hold in another."""
        return self.method is None or self.method.by_example


class Study:
    """One family's bytes and errors, down to the deepest layers that may be trained.

    examples: on how many of the problem's examples errors are measured. What costs time is measured when first asked for.
    """

    def __init__(self, problem: Problem, family: Family, depth: int, costs: Costs, examples: int) -> None:
        self.problem, self.family, self.depth, self.costs, self.examples = problem, family, depth, costs, examples
        groups = self.groups(depth)
        self.keys = {name: group.key for group in groups for name in group.layers}
        self.inputs = problem.inputs([*problem.trained(depth), *self.keys.values()], examples)
        self.ladders = {group.key: family.ladder(self.inputs[group.key]) for group in groups}
        x = problem.x[:examples]
        self.raw = {key for key in self.ladders if x.shape == self.inputs[key].shape and torch.equal(x, self.inputs[key])}

    def groups(self, depth: int) -> list[Group]:
        """Return the kept tensors of so many trained convolutions."""
        method = self.family.method or Exact(self.family.derive)
        return groups_of(self.problem.plain, assign(self.problem.model, names_at(self.problem, depth), method))

    @cached_property
    def levels(self) -> list[Methods]:
        """The methods of every layer at each level, the gentlest first."""
        count = min(len(ladder) for ladder in self.ladders.values())
        return [{name: self.ladders[key][place] for name, key in self.keys.items()} for place in range(count)]

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The errors of every level."""
        trained, batch = self.problem.in_order(self.depth), self.problem.examples(self.examples)
        return measure_sensitivity(self.problem.model, batch, trained, self.levels, self.problem.loss)

    @cached_property
    def ways(self) -> dict[str, list[Way]]:
        """The ways to keep each tensor, with their errors in every layer; most of them are other tensors' affair."""
        return {key: ways_of(ladder, self.sensitivity.levels) for key, ladder in self.ladders.items()}

    @cached_property
    def others(self) -> dict[str, int]:
        """What a step of one example saves besides the kept tensors, by module: masks, the loss."""
        # Masks are what a method leaves that does not keep the very input; the fastest one tells it.
        lossy = [methods for methods in self.levels if not all(method.keeps_input for method in methods.values())]
        one = measure_step(self.problem, min(lossy or self.levels, key=_seconds), 1)
        return {name: size for name, size in one.by_layer.items() if name not in self.ladders}

    def besides(self, depth: int, micro_batch: int) -> int:
        """Return the bytes that are saved besides the kept tensors."""
        passed = downstream(self.problem.plain, self.problem.trained(depth)) | {""}
        return micro_batch * sum(size for name, size in self.others.items() if name in passed)

    def least(self, depth: int, micro_batch: int) -> int:
        """Return the bytes of the coarsest level."""
        coarsest = (self.size(self.ladders[group.key][-1], group.key, micro_batch) for group in self.groups(depth))
        return sum(coarsest) + self.besides(depth, micro_batch)

    def coarsest(self, depth: int) -> Methods:
        """Return the coarsest methods of so many trained convolutions."""
        names = names_at(self.problem, depth)
        return {name: method for name, method in self.levels[-1].items() if name in names}

    def draft(self, depth: int, micro_batch: int, capacity: int, most_ways: int = MOST_WAYS) -> Draft | None:
        """Return the draft with the least error whose step is expected to save so many bytes, None where nothing fits."""
        if self.least(depth, micro_batch) > capacity:
            return None
        return self.draft_within(depth, micro_batch, capacity - self.besides(depth, micro_batch), most_ways)

    def draft_within(self, depth: int, micro_batch: int, room: int, most_ways: int = MOST_WAYS) -> Draft | None:
        """Return the draft with the least error whose kept tensors take so many bytes, None where nothing fits."""
        groups, trained = self.groups(depth), self.problem.in_order(depth)
        ways = {group.key: [of_group(way, group) for way in self.ways[group.key]] for group in groups}
        sizes = {key: [self.size(way.method, key, micro_batch) for way in found] for key, found in ways.items()}
        return draft(depth, micro_batch, groups, ways, sizes, trained, self.sensitivity.damping, room, most_ways)

    def size(self, method: Method, key: str, micro_batch: int) -> int:
        """Return the bytes that a method keeps of a tensor, its state too; raw images are kept for nothing."""
        if method.keeps_input and key in self.raw:
            return 0
        x = self.inputs[key]
        like = x.new_empty((micro_batch, *x.shape[1:]), device="meta")
        return method.predicted_bytes(like) + method.predicted_state_bytes(like)

    def seconds(self, found: Draft) -> float:
        """Return about how long a batch takes."""
        passed = downstream(self.problem.plain, self.problem.trained(found.depth))
        methods = {key: way.method for key, way in found.ways.items()}
        elements = {key: self.inputs[key][0].numel() for key in found.ways}
        return step_seconds(self.costs, passed, found.groups, methods, elements, found.micro_batch, self.problem.batch_size)


def names_at(problem: Problem, depth: int) -> list[str]:
    """Return the layers that keep an input: the trained ones, and the smooth activations that a gradient passes."""
    trained = problem.trained(depth)
    passed = downstream(problem.plain, trained)
    return [*trained, *(name for name in smooth_activations(problem.model) if name in passed)]


def _seconds(methods: Methods) -> float:
    return sum(method.seconds[0] for method in methods.values())
