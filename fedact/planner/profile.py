"""The bytes and gradient errors of one family of methods on one model, from which drafts for every micro-batch follow."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy

from fedact.compression import Method
from fedact.compression.exact import Exact
from fedact.planner.cost_model import ModuleCosts, StreamedBlock, step_seconds
from fedact.planner.drafts import Draft, MethodOption, draft, method_options, option_for
from fedact.planner.exact_steps import ExactSteps
from fedact.planner.family import Family
from fedact.planner.gradient_errors import GradientErrors
from fedact.planner.knapsack import MAX_STATES
from fedact.planner.measured_errors import MeasuredErrors
from fedact.planner.problem import Methods
from fedact.planner.saved_inputs import SavedInput
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input

UNBOUNDED = 2**50
"""More bytes than there will ever be."""
NO_ERRORS = GradientErrors({}, {})


class Profile:
    """One family's bytes and errors, for all depths whose saved inputs are among those of ``depth``.

    steps: on which errors are measured. blocks: those that run in streams. Measurements are made at the
    first request and remembered.
    """

    def __init__(self, family: Family, steps: ExactSteps, costs: ModuleCosts, blocks: Sequence[StreamedBlock] = ()) -> None:
        self.family, self.steps, self.costs, self.blocks = family, steps, costs, blocks
        self.structure, self.problem, self.depth = steps.structure, steps.structure.problem, steps.structure.depth
        self._method_bytes: dict[tuple[Method, str, int], int] = {}
        self._drafts: dict[tuple[int, int, int, int], Draft | None] = {}
        self._extreme_bytes: dict[tuple[int, tuple[Method, ...]], int] = {}
        self.keys = {name: saved.key for saved in self.saved_inputs(self.depth) for name in saved.layers}
        self.inputs, self.images, spectra = steps.inputs, self.structure.images, steps.spectra(family, 0)
        self.ladders = {key: family.ladder(self.inputs[key], spectra[key]) for key in spectra}
        self.errors = MeasuredErrors(family, steps, self.ladders, self.keys)
        self._masks = self.structure.mask_bytes(self.depth)

    def with_errors(self, errors: MeasuredErrors) -> "Profile":
        """Return this profile with the errors of another one, place by place: what drafts then say is an estimate."""
        other = copy(self)
        other.errors, other._drafts = errors, {}
        return other

    def saved_inputs(self, depth: int) -> list[SavedInput]:
        """Return the saved inputs at a depth."""
        return self.structure.saved_inputs(depth)

    def covers(self, depth: int) -> bool:
        """Tell whether the saved inputs at a depth are among those of this profile."""
        return all(saved.key in self.ladders for saved in self.saved_inputs(depth))

    def options(self, places: Mapping[str, Sequence[int]]) -> dict[str, list[MethodOption]]:
        """Return options for saved inputs: the methods at some places of their ladders, then what is between neighbours."""
        errors = self.errors.of(places)
        return {
            key: method_options([self.ladders[key][place] for place in some], errors[key], some)
            for key, some in places.items()
        }

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
        sizes, exact = [self.size(method, key, micro_batch) for method in methods], self.size(Exact(), key, micro_batch)
        # As it is, it needs no mask beside it, and several layers keep it together.
        share = exact / self.structure.readers.get(key, 1) - micro_batch * self._masks[key]
        return self.family.admissible(methods, sizes, self.inputs[key].dim(), share)

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
            places = self._places_within(depth, micro_batch, room)
            found = self._optimum(depth, micro_batch, self.options(places), room, max_states) if places else None
            self._drafts[place] = found
        return self._drafts[place]

    def _places_within(self, depth: int, micro_batch: int, room: int) -> dict[str, list[int]]:
        """Return, by saved input, the places of the methods that may be in a draft of so many bytes; none where none is.

        What is larger than all other inputs' least bytes leave room for is in none; the next larger than what is not is
        measured too, for what is between them.
        """
        keys = [saved.key for saved in self.saved_inputs(depth)]
        allowed = {key: self._admissible(key, micro_batch, self.ladders[key]) for key in keys}
        methods = {key: [self.ladders[key][place] for place in places] for key, places in allowed.items()}
        sizes = {
            key: dict(zip(allowed[key], row, strict=True)) for key, row in self._sizes(depth, micro_batch, methods).items()
        }
        least = {key: min(row.values()) for key, row in sizes.items()}
        if (unused := room - sum(least.values())) < 0:
            return {}
        found = {}
        for key, row in sizes.items():
            fitting = {place for place, size in row.items() if size - least[key] <= unused}
            found[key] = sorted(fitting | {place - 1 for place in fitting if place})
        return found

    def draft_of(self, depth: int, micro_batch: int, methods: Methods) -> Draft | None:
        """Return the draft with these methods, whatever they take; None where they are not among the options."""
        chosen = {saved.key: methods[saved.layers[0]] for saved in self.saved_inputs(depth)}
        if any(method not in self.ladders[key] for key, method in chosen.items()):
            return None
        options = self.options({key: [self.ladders[key].index(method)] for key, method in chosen.items()})
        return self._optimum(depth, micro_batch, options, UNBOUNDED, MAX_STATES)

    def exact(self, depth: int, micro_batch: int) -> Draft:
        """Return the draft that saves every input as it is: no error is to be measured for it."""
        inputs, exact = self.saved_inputs(depth), MethodOption(Exact().recomputing(self.family.recompute), NO_ERRORS)
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
        passes_slopes = any(error for row in of_input.values() for option in row for error in option.errors.outputs.values())
        damping = self.errors.damping if passes_slopes else 0.0
        return draft(depth, micro_batch, inputs, of_input, sizes, trained, damping, room, max_states)

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

    def seconds(self, found: Draft, room: int | None = None) -> float:
        """Return the estimated seconds of a batch; room: bytes for the wide maps of blocks in streams."""
        path = self.structure.gradient_path(found.depth)
        methods = {key: option.method for key, option in found.options.items()}
        elements = {key: self.inputs[key][0].numel() for key in found.options}
        saved, size = found.saved_inputs, self.problem.batch_size
        return step_seconds(self.costs, path, saved, methods, elements, found.micro_batch, size, self.blocks, room or 0)
