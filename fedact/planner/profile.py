"""The bytes and gradient errors of one family of methods on one model, from which drafts for every micro-batch follow."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.planner.cost_model import ModuleCosts, step_seconds
from fedact.planner.drafts import Draft, MethodOption, draft, method_options, option_for
from fedact.planner.exact_steps import ExactSteps
from fedact.planner.family import Family
from fedact.planner.knapsack import MAX_STATES
from fedact.planner.problem import Methods
from fedact.planner.saved_inputs import SavedInput
from fedact.planner.sensitivity import GradientErrors, Sensitivity, mean_sensitivity, measure_sensitivity
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input

FEW, ELEMENTS = 4, 6_000_000
"""Errors are averaged over micro-batches that have at least so many examples in all, fewer where inputs are large."""
UNBOUNDED = 2**50
"""More bytes than there will ever be."""
NO_ERRORS = GradientErrors({}, {})


class Profile:
    """One family's bytes and errors, for all depths whose saved inputs are among those of ``depth``.

    steps: on which errors are measured. Measurements are made at the first request and remembered.
    """

    def __init__(self, family: Family, steps: ExactSteps, costs: ModuleCosts) -> None:
        self.family, self.steps, self.costs = family, steps, costs
        self.structure, self.problem, self.depth = steps.structure, steps.structure.problem, steps.structure.depth
        self._method_bytes: dict[tuple[Method, str, int], int] = {}
        self._drafts: dict[tuple[int, int, int, int], Draft | None] = {}
        self._extreme_bytes: dict[tuple[int, tuple[Method, ...]], int] = {}
        self.keys = {name: saved.key for saved in self.saved_inputs(self.depth) for name in saved.layers}
        self.inputs, self.images, spectra = steps.inputs, self.structure.images, steps.spectra(family, 0)
        self.ladders = {key: family.ladder(self.inputs[key], spectra[key]) for key in spectra}

    def saved_inputs(self, depth: int) -> list[SavedInput]:
        """Return the saved inputs at a depth."""
        return self.structure.saved_inputs(depth)

    def covers(self, depth: int) -> bool:
        """Tell whether the saved inputs at a depth are among those of this profile."""
        return all(saved.key in self.ladders for saved in self.saved_inputs(depth))

    @cached_property
    def levels(self) -> list[Methods]:
        """The methods of every layer at each level, the gentlest first."""
        count = min(len(ladder) for ladder in self.ladders.values())
        return [{name: self.ladders[key][place] for name, key in self.keys.items()} for place in range(count)]

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The errors of every level; the mean over several micro-batches where errors depend on their size."""
        size = self.steps.micro_batch
        elements = sum(x[0].numel() for x in self.inputs.values())
        few = min(FEW, self.problem.batch_size, ELEMENTS // max(1, elements))
        several = 1 if self.family.per_example else max(1, few // size)
        return mean_sensitivity([self._measured(place) for place in range(several)]).on_grid()

    def _measured(self, place: int) -> Sensitivity:
        """Return the errors of every level in one of the steps."""
        problem, table, batch = self.problem, self.steps.table(place), self.steps.batch(place)
        if table is not None:
            spectra = self.steps.spectra(self.family, place)
            return table.sensitivity(batch, self.ladders, spectra, problem.loss, self.steps.rows.setdefault(place, {}))
        trained = problem.trained_in_order(self.depth)
        return measure_sensitivity(problem.model, batch, trained, self.levels, problem.loss)

    @cached_property
    def options(self) -> dict[str, list[MethodOption]]:
        """The options for each saved input, with their errors in every layer, also those that do not depend on it."""
        return {key: method_options(ladder, self.sensitivity.levels) for key, ladder in self.ladders.items()}

    def least_bytes(self, depth: int, micro_batch: int) -> int:
        """Return the predicted saved bytes of a step with the smallest methods."""
        ladders = self._ladders([saved.key for saved in self.saved_inputs(depth)], micro_batch)
        sizes = self._sizes(depth, micro_batch, ladders)
        return sum(map(min, sizes.values())) + self.structure.overhead_bytes(depth, micro_batch)

    def extremes(self, depth: int, micro_batch: int) -> list[Methods]:
        """Return, for the layers of a depth, the methods with the fewest bytes, and the gentlest."""
        names, ladders = layers_with_input(self.problem, depth), self._ladders(self.ladders, micro_batch)
        sizes = self._sizes(depth, micro_batch, ladders)
        smallest = {key: ladders[key][row.index(min(row))] for key, row in sizes.items()}
        return [
            {name: method[key] for name, key in self.keys.items() if name in names}
            for method in (smallest, {key: ladder[0] for key, ladder in ladders.items()})
        ]

    def _ladders(self, keys: Iterable[str], micro_batch: int) -> dict[str, list[Method]]:
        """Return the methods that may be taken for these saved inputs, the gentlest first."""
        return {
            key: [self.ladders[key][place] for place in self._admissible(key, micro_batch, self.ladders[key])]
            for key in keys
        }

    def _admissible(self, key: str, micro_batch: int, methods: Sequence[Method]) -> list[int]:
        """Return the places of the methods that may be taken for a saved input."""
        sizes = [self.size(method, key, micro_batch) for method in methods]
        return self.family.admissible(methods, sizes, self.inputs[key].dim(), self.size(Exact(), key, micro_batch))

    def draft(self, depth: int, micro_batch: int, capacity: int, max_states: int = MAX_STATES) -> Draft | None:
        """Return the draft with the least error whose step is predicted to save at most ``capacity`` bytes, else None."""
        if self.least_bytes(depth, micro_batch) > capacity:
            return None
        return self.draft_within(
            depth, micro_batch, capacity - self.structure.overhead_bytes(depth, micro_batch), max_states
        )

    def draft_within(self, depth: int, micro_batch: int, room: int, max_states: int = MAX_STATES) -> Draft | None:
        """Return the draft with the least error whose saved inputs take at most ``room`` bytes, else None."""
        place = (depth, micro_batch, room, max_states)
        if place not in self._drafts:
            options = {saved.key: self.options[saved.key] for saved in self.saved_inputs(depth)}
            self._drafts[place] = self._optimum(depth, micro_batch, options, room, max_states)
        return self._drafts[place]

    def draft_of(self, depth: int, micro_batch: int, methods: Methods) -> Draft | None:
        """Return the draft with these methods, whatever they take; None where they are not among the options."""
        chosen = {saved.key: methods[saved.layers[0]] for saved in self.saved_inputs(depth)}
        options = {
            key: [option for option in self.options[key] if option.method == method] for key, method in chosen.items()
        }
        return self._optimum(depth, micro_batch, options, UNBOUNDED, MAX_STATES) if all(options.values()) else None

    def exact(self, depth: int, micro_batch: int) -> Draft:
        """Return the draft that saves every input as it is: no error is to be measured for it."""
        inputs, exact = self.saved_inputs(depth), MethodOption(Exact(self.family.derive), NO_ERRORS)
        options = {saved.key: [exact] for saved in inputs}
        sizes = self._sizes(depth, micro_batch, {key: [exact.method] for key in options})
        trained = self.problem.trained_in_order(depth)
        found = draft(depth, micro_batch, inputs, options, sizes, trained, 0.0, UNBOUNDED)
        assert found is not None
        return found

    def extreme(self, depth: int, micro_batch: int, capacity: int, gentle: bool) -> Draft | None:
        """Return the draft of the smallest or the gentlest methods where one example's measured step says that they fit.

        They may where no other draft does: what is saved as it is may be saved by other modules too, and counts once.
        """
        methods = self.extremes(depth, micro_batch)[gentle]
        if self.problem.scope == "peak":
            # Whether it fits is predicted, for any micro-batch.
            return self.draft_of(depth, micro_batch, methods)
        chosen = {saved.key: [methods[saved.layers[0]]] for saved in self.saved_inputs(depth)}
        inputs = sum(self.size(method, key, micro_batch) for key, (method,) in chosen.items())
        predicted = sum(size for (size,) in self._sizes(depth, micro_batch, chosen).values())
        predicted += self.structure.least_overhead_bytes(depth, micro_batch)
        if inputs > capacity or predicted - micro_batch * self.structure.shared_bytes > capacity:
            return None
        place = (depth, tuple(methods.values()))
        if place not in self._extreme_bytes:
            memory = measure_step(self.problem, methods, 1)
            self._extreme_bytes[place] = self.problem.bytes_in_scope(memory)
        if self._extreme_bytes[place] * micro_batch > capacity:
            return None
        return self.draft_of(depth, micro_batch, methods)

    def _optimum(
        self, depth: int, micro_batch: int, options: Mapping[str, Sequence[MethodOption]], room: int, max_states: int
    ) -> Draft | None:
        inputs, trained = self.saved_inputs(depth), self.problem.trained_in_order(depth)
        of_input = {saved.key: [option_for(option, saved) for option in options[saved.key]] for saved in inputs}
        of_input = {
            key: [row[place] for place in self._admissible(key, micro_batch, [option.method for option in row])]
            for key, row in of_input.items()
        }
        sizes = self._sizes(depth, micro_batch, {key: [each.method for each in row] for key, row in of_input.items()})
        return draft(depth, micro_batch, inputs, of_input, sizes, trained, self.sensitivity.damping, room, max_states)

    def _sizes(self, depth: int, micro_batch: int, methods: Mapping[str, Sequence[Method]]) -> dict[str, list[int]]:
        """Return the bytes of each saved input, with the masks saved beside it, under each of its methods."""
        masks = self.structure.mask_bytes(depth)
        return {
            key: [
                self.size(method, key, micro_batch) + (0 if method.traits.keeps_input else micro_batch * masks[key])
                for method in row
            ]
            for key, row in methods.items()
        }

    def size(self, method: Method, key: str, micro_batch: int) -> int:
        """Return the bytes that a method stores for a saved input, its state included; the raw images count nothing."""
        if method.traits.keeps_input and key in self.images:
            return 0
        place = (method, key, micro_batch)
        if place not in self._method_bytes:
            x = self.inputs[key]
            like = x.new_empty((micro_batch, *x.shape[1:]), device="meta")
            self._method_bytes[place] = method.predicted_bytes(like) + method.predicted_state_bytes(like)
        return self._method_bytes[place]

    def seconds(self, found: Draft) -> float:
        """Return the estimated seconds of a batch."""
        path = self.structure.gradient_path(found.depth)
        methods = {key: option.method for key, option in found.options.items()}
        elements = {key: self.inputs[key][0].numel() for key in found.options}
        saved, size = found.saved_inputs, self.problem.batch_size
        return step_seconds(self.costs, path, saved, methods, elements, found.micro_batch, size)
