"""What the step under the ledger shows is what a step of its own shows."""

import pytest
import torch
import torch.nn.functional as F

from fedact.compression import make_method
from fedact.planner.observed_step import ObservedStep
from fedact.planner.problem import WHOLE, make_problem
from fedact.planner.step_error import step_error
from fedact.planner.step_memory import measure_step, measure_within_budget
from fedact.planner.step_structure import layers_with_input
from tests.support.planned import batch, net

CAPPED = "hosvd:variance=0.8,max_ranks=2x2x2x2"


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("name", ["hosvd:variance=0.8", "quantize:bits=4", "transform:bits=2", CAPPED, "asi"])
def test_error_operations_and_bytes_are_those_of_steps_of_their_own(name, micro_batch):
    method = make_method(name)
    given = {"budget": None, "scope": "saved", "loss": F.cross_entropy}
    problem = make_problem(net(), batch(8), method=method, **given)
    methods = dict.fromkeys(layers_with_input(problem, 3), method)
    observed = ObservedStep(methods)
    memory = measure_within_budget(problem, methods, micro_batch, WHOLE, observed)
    assert memory == measure_step(problem, methods, micro_batch)
    own, found = step_error(problem, methods, micro_batch), step_error(problem, methods, micro_batch, observed)
    assert found.flops == own.flops
    assert found.error == pytest.approx(own.error, rel=1e-4)
    # A state that is read, and caps that are filled, ask for a step of their own.
    assert bool(observed.gradients) == (name not in (CAPPED, "asi"))
    assert all(isinstance(gradient, torch.Tensor) for gradient in observed.gradients.values())
