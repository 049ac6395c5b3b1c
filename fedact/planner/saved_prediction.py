"""The least saved bytes of a step under given methods, from shapes: a step that cannot fit need not be measured."""

import torch

from fedact.planner.problem import Methods, Problem
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import StepStructure

LINEARITY = 1.1
"""The bytes of a whole batch are at least those of one example times the batch size, divided by this."""


class SavedPrediction:
    """Predicts the saved bytes of steps at one depth."""

    def __init__(self, problem: Problem, depth: int) -> None:
        self.problem, self.depth = problem, depth
        self._structures: dict[int, StepStructure] = {}
        self._exact_bytes: dict[int, int] = {}

    def may_fit(self, methods: Methods, micro_batch: int) -> bool:
        """Tell whether a step, in which methods store as much as their caps allow, may be within the budget."""
        budget = self.problem.budget
        return budget is None or self.least_bytes(methods, micro_batch) <= LINEARITY * budget

    def least_bytes(self, methods: Methods, micro_batch: int) -> int:
        """Return what the inputs take that are stored with loss, and what is saved beside them; of exact methods a part."""
        if all(method.traits.keeps_input for method in methods.values()):
            return self._of_one(methods) * micro_batch
        structure = self.structure(max(method.recompute for method in methods.values()))
        masks, total = structure.mask_bytes(self.depth), structure.overhead_bytes(self.depth, micro_batch)
        for saved in structure.saved_inputs(self.depth):
            method, x = methods[saved.layers[0]].ceiling, structure.inputs[saved.key]
            # What is kept as it is may be saved by other modules too, and counts once.
            if not method.traits.keeps_input and x.dtype is torch.float32:
                shape = (micro_batch, *x.shape[1:])
                total += method.predicted_bytes(shape) + method.predicted_state_bytes(shape)
                total += micro_batch * masks[saved.key]
        return total

    def _of_one(self, methods: Methods) -> int:
        """Return the measured bytes of one example's step under methods that keep their inputs."""
        recompute = max(method.recompute for method in methods.values())
        if recompute not in self._exact_bytes:
            self._exact_bytes[recompute] = measure_step(self.problem, methods, 1).saved_bytes
        return self._exact_bytes[recompute]

    def structure(self, recompute: int) -> StepStructure:
        """Return what steps of one ``recompute`` have in common."""
        if recompute not in self._structures:
            self._structures[recompute] = StepStructure(self.problem, recompute, self.depth)
        return self._structures[recompute]
