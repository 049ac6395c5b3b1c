"""Exact steps on the first examples, and what all methods' ladders and errors have in common: made once, remembered."""

from functools import cached_property
from typing import Any

from torch import Tensor

from fedact.measure.step import Batch, parts
from fedact.planner.error_table import ErrorTable, Rows, measure_table
from fedact.planner.family import Family
from fedact.planner.round_trip import KnownSpectra
from fedact.planner.step_structure import StepStructure


class ExactSteps:
    """Steps at a structure's greatest depth, each on the ``micro_batch`` examples that follow those of the one before.

    rows: errors that were found on each of the steps, by its place; shared with those at the same depth on as many examples.
    known: spectra of a network out of the ordinary, by the step's place.
    """

    def __init__(self, structure: StepStructure, micro_batch: int, rows: dict[int, Rows]) -> None:
        self.structure, self.micro_batch, self.rows = structure, micro_batch, rows
        self._tables: dict[int, ErrorTable | None] = {}
        self._spectra: dict[tuple[int, str], Any] = {}
        self.known: dict[int, KnownSpectra] = {}

    def batch(self, place: int) -> Batch:
        """Return the examples of one of the steps."""
        problem = self.structure.problem
        *_, last = parts(problem.examples(self.micro_batch * (place + 1)), self.micro_batch)
        return last

    def table(self, place: int) -> ErrorTable | None:
        """Return what one of the steps shows, None for a network out of the ordinary; changes the model's methods."""
        if place not in self._tables:
            structure = self.structure
            trained = structure.problem.trained_in_order(structure.depth)
            self._tables[place] = measure_table(
                structure.problem.model,
                self.batch(place),
                trained,
                structure.saved_inputs(structure.depth),
                structure.rematerializations,
                structure.problem.loss,
            )
        return self._tables[place]

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs of the first step, by the saved input's key."""
        table, structure = self.table(0), self.structure
        if table is not None:
            return dict(table.inputs)
        keys = [saved.key for saved in structure.saved_inputs(structure.depth)]
        inputs = structure.problem.inputs([*structure.problem.trained(structure.depth), *keys], self.micro_batch)
        return {key: inputs[key] for key in keys}

    def spectra(self, family: Family, place: int) -> dict[str, Any]:
        """Return the spectra of a step's inputs, by key; None for each where the family needs none."""
        table = self.table(place)
        inputs = self.inputs if place == 0 or table is None else table.inputs
        for key, x in inputs.items():
            if (place, key) not in self._spectra:
                self._spectra[place, key] = family.spectra(x)
        return {key: self._spectra[place, key] for key in inputs}
