"""What is measured once about one family of methods on one model, for every depth and micro-batch to be drafted from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.compression.quantize import Quantize
from fedact.compression.transform.transform import Transform
from fedact.measure.step import parts
from fedact.nn.graph import downstream
from fedact.nn.install import covered
from fedact.nn.surgery import assign, smooth_activations
from fedact.planner.cost_model import Costs, step_seconds
from fedact.planner.drafts import Draft, Way, draft, of_group, ways_of
from fedact.planner.kept_tensors import Group, groups_of
from fedact.planner.knapsack import MOST_WAYS
from fedact.planner.problem import Methods, Problem, measure_step
from fedact.planner.sensitivity import Sensitivity, averaged, measure_sensitivity

FEW = 4
"""One micro-batch of fewer examples tells too little of what another one's errors would be."""
BOUNDLESS = 2**50
"""More bytes than there will ever be."""


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
        return self.method is None or self.method.traits.per_example


class Study:
    """One family's bytes and errors, down to the deepest layers that may be trained.

    examples: on how many of the problem's examples errors are measured. What costs time is measured when first asked for.
    """

    def __init__(self, problem: Problem, family: Family, depth: int, costs: Costs, examples: int) -> None:
        self.problem, self.family, self.depth, self.costs, self.examples = problem, family, depth, costs, examples
        self.grouped: dict[int, list[Group]] = {}
        self.held: dict[tuple[int, bool], int] = {}
        groups = self.groups(depth)
        self.keys = {name: group.key for group in groups for name in group.layers}
        self.inputs = problem.inputs([*problem.trained(depth), *self.keys.values()], examples)
        self.ladders = {group.key: family.ladder(self.inputs[group.key]) for group in groups}
        x = problem.x[:examples]
        self.raw = {key for key in self.ladders if x.shape == self.inputs[key].shape and torch.equal(x, self.inputs[key])}

    def groups(self, depth: int) -> list[Group]:
        """Return the kept tensors of so many trained convolutions."""
        if depth not in self.grouped:
            method = self.family.method or Exact(self.family.derive)
            methods = assign(self.problem.model, names_at(self.problem, depth), method)
            self.grouped[depth] = groups_of(self.problem.plain, methods)
        return self.grouped[depth]

    def knows(self, depth: int) -> bool:
        """Tell whether the tensors that fewer trained convolutions keep are among those of this study."""
        return all(group.key in self.ladders for group in self.groups(depth))

    @cached_property
    def levels(self) -> list[Methods]:
        """The methods of every layer at each level, the gentlest first."""
        count = min(len(ladder) for ladder in self.ladders.values())
        return [{name: self.ladders[key][place] for name, key in self.keys.items()} for place in range(count)]

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The errors of every level: the mean over several micro-batches, where it has to be measured in small ones."""
        problem, trained = self.problem, self.problem.in_order(self.depth)
        several = 1 if self.family.by_example else max(1, min(FEW, problem.batch_size) // self.examples)
        batches = parts(problem.examples(self.examples * several), self.examples)
        return averaged([measure_sensitivity(problem.model, part, trained, self.levels, problem.loss) for part in batches])

    @cached_property
    def ways(self) -> dict[str, list[Way]]:
        """The ways to keep each tensor, with their errors in every layer; most of them are other tensors' affair."""
        return {key: ways_of(ladder, self.sensitivity.levels) for key, ladder in self.ladders.items()}

    @cached_property
    def others(self) -> dict[str, int]:
        """What a step of one example saves besides the kept tensors, by module: masks, the loss."""
        # Masks are what a method leaves that does not keep the very input; the fastest one tells it.
        lossy = [methods for methods in self.levels if not all(method.traits.keeps_input for method in methods.values())]
        one = measure_step(self.problem, min(lossy or self.levels, key=_seconds), 1)
        # A kept tensor may go by the name of whatever reads it last.
        readers = {name for group in self.groups(self.depth) for name in (group.key, *group.layers, *group.masks)}
        return {name: size for name, size in one.by_layer.items() if name not in readers}

    @cached_property
    def spared(self) -> dict[str, str]:
        """The activations whose mask is not needed where a tensor is kept as it is, with that tensor's key."""
        plain, found = self.problem.plain, dict[str, str]()
        for key in self.ladders:
            for activation in covered(plain, {key: Exact()}):
                found.setdefault(activation, key)
        return found

    def besides(self, depth: int, micro_batch: int) -> int:
        """Return the bytes that are saved besides the kept tensors, whatever their methods."""
        passed = _with_containers(self._passed(depth))
        sizes = (size for name, size in self.others.items() if name in passed and name not in self.spared)
        return micro_batch * sum(sizes)

    def masks(self, depth: int) -> dict[str, int]:
        """Return the bytes of one example's masks that go with each tensor unless it is kept as it is."""
        passed, found = self._passed(depth), dict.fromkeys(self.ladders, 0)
        for activation, key in self.spared.items():
            found[key] += self.others.get(activation, 0) if activation in passed else 0
        return found

    def least(self, depth: int, micro_batch: int) -> int:
        """Return the fewest bytes of a step."""
        sizes = self._sizes(depth, micro_batch, {group.key: self.ladders[group.key] for group in self.groups(depth)})
        return sum(map(min, sizes.values())) + self.besides(depth, micro_batch)

    def extremes(self, depth: int) -> list[Methods]:
        """Return the methods of so many trained convolutions with the fewest bytes, and the gentlest."""
        names, sizes = names_at(self.problem, depth), self._sizes(depth, 1, self.ladders)
        smallest = {key: self.ladders[key][each.index(min(each))] for key, each in sizes.items()}
        return [
            {name: method[key] for name, key in self.keys.items() if name in names}
            for method in (smallest, {key: ladder[0] for key, ladder in self.ladders.items()})
        ]

    def draft(self, depth: int, micro_batch: int, capacity: int, most_ways: int = MOST_WAYS) -> Draft | None:
        """Return the draft with the least error whose step is expected to save so many bytes, None where nothing fits."""
        if self.least(depth, micro_batch) > capacity:
            return None
        return self.draft_within(depth, micro_batch, capacity - self.besides(depth, micro_batch), most_ways)

    def extreme(self, depth: int, micro_batch: int, capacity: int, gentle: bool) -> Draft | None:
        """Return the draft of the smallest or the gentlest methods where one example's real step tells that they fit.

        They may where no other draft says so: what is kept as it is may be kept by others too, and then counts once.
        """
        methods = self.extremes(depth)[gentle]
        own = sum(self.size(methods[group.layers[0]], group.key, micro_batch) for group in self.groups(depth))
        if own > capacity or self._held(depth, gentle) * micro_batch > capacity:
            return None
        return self.draft_of(depth, micro_batch, methods)

    def _held(self, depth: int, gentle: bool) -> int:
        """Return the bytes, in the budget's scope, of one example's step under the smallest or the gentlest methods."""
        if (depth, gentle) not in self.held:
            self.held[depth, gentle] = self.problem.held(measure_step(self.problem, self.extremes(depth)[gentle], 1))
        return self.held[depth, gentle]

    def draft_within(self, depth: int, micro_batch: int, room: int, most_ways: int = MOST_WAYS) -> Draft | None:
        """Return the draft with the least error whose kept tensors take so many bytes, None where nothing fits."""
        ways = {group.key: self.ways[group.key] for group in self.groups(depth)}
        return self._drafted(depth, micro_batch, ways, room, most_ways)

    def draft_of(self, depth: int, micro_batch: int, methods: Methods) -> Draft | None:
        """Return the draft with these methods, whatever they take; None where they are none of the study's."""
        chosen = {group.key: methods[group.layers[0]] for group in self.groups(depth)}
        ways = {key: [way for way in self.ways[key] if way.method == method] for key, method in chosen.items()}
        return self._drafted(depth, micro_batch, ways, BOUNDLESS, MOST_WAYS) if all(ways.values()) else None

    def _drafted(
        self, depth: int, micro_batch: int, ways: Mapping[str, Sequence[Way]], room: int, most_ways: int
    ) -> Draft | None:
        groups, trained = self.groups(depth), self.problem.in_order(depth)
        own = {group.key: [of_group(way, group) for way in ways[group.key]] for group in groups}
        sizes = self._sizes(depth, micro_batch, {key: [way.method for way in found] for key, found in own.items()})
        return draft(depth, micro_batch, groups, own, sizes, trained, self.sensitivity.damping, room, most_ways)

    def _sizes(self, depth: int, micro_batch: int, methods: Mapping[str, Sequence[Method]]) -> dict[str, list[int]]:
        """Return the bytes of each tensor, with the masks that go with it, under each of its methods."""
        masks = self.masks(depth)
        return {
            key: [
                self.size(method, key, micro_batch) + (0 if method.traits.keeps_input else micro_batch * masks[key])
                for method in each
            ]
            for key, each in methods.items()
        }

    def _passed(self, depth: int) -> set[str]:
        """Return the modules that a gradient passes."""
        return downstream(self.problem.plain, self.problem.trained(depth))

    def size(self, method: Method, key: str, micro_batch: int) -> int:
        """Return the bytes that a method keeps of a tensor, its state too; raw images are kept for nothing."""
        if method.traits.keeps_input and key in self.raw:
            return 0
        x = self.inputs[key]
        like = x.new_empty((micro_batch, *x.shape[1:]), device="meta")
        return method.predicted_bytes(like) + method.predicted_state_bytes(like)

    def seconds(self, found: Draft) -> float:
        """Return about how long a batch takes."""
        passed = self._passed(found.depth)
        methods = {key: way.method for key, way in found.ways.items()}
        elements = {key: self.inputs[key][0].numel() for key in found.ways}
        return step_seconds(self.costs, passed, found.groups, methods, elements, found.micro_batch, self.problem.batch_size)


def names_at(problem: Problem, depth: int) -> list[str]:
    """Return the layers that keep an input: the trained ones, and the smooth activations that a gradient passes."""
    trained = problem.trained(depth)
    passed = downstream(problem.plain, trained)
    return [*trained, *(name for name in smooth_activations(problem.model) if name in passed)]


def _with_containers(names: Iterable[str]) -> set[str]:
    """Return the names of modules and of all that they are in, the model's own (empty) one included."""
    parts = [name.split(".") for name in names]
    return {".".join(each[:count]) for each in parts for count in range(len(each) + 1)}


def _seconds(methods: Methods) -> float:
    return sum(method.traits.tensor_seconds for method in methods.values())
