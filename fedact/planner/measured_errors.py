"""The gradient errors of one family of methods, each measured once, when a draft may take it."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from fedact.compression import Method
from fedact.planner.exact_steps import ExactSteps
from fedact.planner.family import Family
from fedact.planner.gradient_errors import GradientErrors, mean_errors, on_grid
from fedact.planner.sensitivity import Sensitivity, measure_damping, measure_sensitivity

FEW, ELEMENTS = 4, 6_000_000
"""Errors are averaged over micro-batches that have at least so many examples in all, fewer where inputs are large."""


class MeasuredErrors:
    """Errors by saved input and place in its ladder: means over the exact steps, on the grid that choices are made with.

    ladders: by the saved input's key, one method a place, the gentlest first; keys: the saved input of every layer.
    """

    def __init__(
        self, family: Family, steps: ExactSteps, ladders: Mapping[str, Sequence[Method]], keys: Mapping[str, str]
    ) -> None:
        self.family, self.steps, self.ladders, self.keys = family, steps, ladders, keys
        self._known: dict[tuple[str, int], GradientErrors] = {}
        self._whole: dict[int, Sensitivity] = {}

    @cached_property
    def step_count(self) -> int:
        """How many exact steps errors are averaged over: one where they do not depend on the size of the micro-batch."""
        elements = sum(x[0].numel() for x in self.steps.inputs.values())
        few = min(FEW, self.steps.structure.problem.batch_size, ELEMENTS // max(1, elements))
        return 1 if self.family.per_example else max(1, few // self.steps.micro_batch)

    def of(self, places: Mapping[str, Sequence[int]]) -> dict[str, list[GradientErrors]]:
        """Return the errors at some places of the ladders, by the saved input's key; changes the model's methods."""
        missing = {key: [place for place in some if (key, place) not in self._known] for key, some in places.items()}
        missing = {key: some for key, some in missing.items() if some}
        if missing:
            found = [self._in_step(step, missing) for step in range(self.step_count)]
            for key, some in missing.items():
                for place, *errors in zip(some, *(each[key] for each in found), strict=True):
                    self._known[key, place] = mean_errors(errors).on_grid()
        return {key: [self._known[key, place] for place in some] for key, some in places.items()}

    @cached_property
    def damping(self) -> float:
        """The mean share of an error in a layer's output gradient that arrives in weight gradients: see ``Sensitivity``."""
        middle = self.level_count // 2
        errors = [self._in_step(step, {key: [middle] for key in self.ladders}) for step in range(self.step_count)]
        return on_grid(sum(self._damping(step, middle, each) for step, each in enumerate(errors)) / len(errors))

    def _damping(self, step: int, level: int, errors: Mapping[str, Sequence[GradientErrors]]) -> float:
        """Return the damping in one of the steps, with every input at one level, whose errors are given."""
        table = self.steps.table(step)
        if table is None:
            return self._sensitivity(step).damping
        united = GradientErrors.united(each for (each,) in errors.values())
        problem = self.steps.structure.problem
        batch, methods = self.steps.batch(step), self.methods(level)
        return measure_damping(problem.model, batch, methods, united, table.exact, problem.loss, problem.room)

    def _in_step(self, step: int, places: Mapping[str, Sequence[int]]) -> dict[str, list[GradientErrors]]:
        """Return the errors at some places in one of the steps."""
        table = self.steps.table(step)
        if table is None:
            levels = self._sensitivity(step).levels
            return {key: [levels[place] for place in some] for key, some in places.items()}
        wanted = {key: [self.ladders[key][place] for place in some] for key, some in places.items()}
        return table.errors(wanted, self.steps.spectra(self.family, step), self.steps.rows.setdefault(step, {}))

    def _sensitivity(self, step: int) -> Sensitivity:
        """Return what one of the steps shows of a network out of the ordinary: the errors of all levels."""
        if step not in self._whole:
            structure = self.steps.structure
            problem, trained = structure.problem, structure.problem.trained_in_order(structure.depth)
            levels = [self.methods(level) for level in range(self.level_count)]
            batch, known = self.steps.batch(step), self.steps.known.setdefault(step, {})
            found = measure_sensitivity(problem.model, batch, trained, levels, problem.loss, problem.room, known)
            self._whole[step] = found
        return self._whole[step]

    @cached_property
    def level_count(self) -> int:
        """How many methods every ladder has."""
        return min(len(ladder) for ladder in self.ladders.values())

    def methods(self, level: int) -> dict[str, Method]:
        """Return the method of every layer at a level, 0 the gentlest."""
        return {name: self.ladders[key][level] for name, key in self.keys.items()}
