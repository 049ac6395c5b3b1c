"""A plan's error is that of its step, not of an estimate; of plans that are as fast the one with less error is taken."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import make_method
from fedact.planner.allocation import NEGLIGIBLE
from fedact.planner.gradient_errors import GradientErrors
from fedact.planner.problem import make_problem
from fedact.planner.search import Solution
from fedact.planner.selection import Selection, fastest_first
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input
from tests.support.inverted_residuals import batch as batch_of
from tests.support.inverted_residuals import small
from tests.support.planned import batch, net

LAYERS = 3


def a_thousandth(found: GradientErrors) -> GradientErrors:
    """Return errors that say of every method it has hardly any."""
    return GradientErrors(*({name: error / 1000 for name, error in each.items()} for each in found))


@pytest.mark.parametrize("share", [2, 4])
def test_an_estimate_that_is_too_low_does_not_choose_a_plan(share, monkeypatch):
    """Of a larger micro-batch everything is estimated to fit without error; measured, it has ten times a smaller one's."""
    budget = fedact.make_plan(net(), None, batch(8), "exact", LAYERS).saved_bytes // share
    monkeypatch.setattr(GradientErrors, "on_grid", a_thousandth)
    plan = fedact.make_plan(net(), budget, batch(8), "hosvd", LAYERS, "saved")
    assert plan.layers == LAYERS
    assert plan.expected_error <= NEGLIGIBLE * (LAYERS + 1)


def test_of_plans_as_fast_that_with_less_error_comes_first():
    given = [(1.0, 3.0), (2.0, 0.5), (1.05, 1.0), (1.01, 9.0), (1.2, 0.1)]
    candidates = [SimpleNamespace(draft=SimpleNamespace(error=error), seconds=seconds) for seconds, error in given]
    order = [candidates.index(each) for each in fastest_first(candidates, 5.0)]
    assert order == [2, 0, 4, 1]


def test_methods_with_too_much_error_are_not_measured_again_in_other_rooms():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = small(), batch_of(4, 16, torch.float32)
    problem = make_problem(model, example, method="hosvd", budget=10**9, scope="peak", loss=F.cross_entropy)
    names = layers_with_input(problem, LAYERS)
    coarse, fine = (dict.fromkeys(names, make_method(f"quantize:bits={bits}")) for bits in (2, 8))
    given = [(coarse, None), (coarse, 900), (coarse, 300), (fine, 300)]
    measured = []

    def best(candidate):
        measured.append((candidate.draft.methods, candidate.room))
        memory = measure_step(replace(problem, room=candidate.room), candidate.draft.methods, 2)
        return Solution(LAYERS, 2, candidate.draft.methods, memory, {}, room=candidate.room)

    candidates = [
        SimpleNamespace(draft=SimpleNamespace(error=0.0, methods=methods, micro_batch=2), room=room)
        for methods, room in given
    ]
    taken = Selection(problem, lambda room: SimpleNamespace(best=best), SlowdownLimit(problem, None))
    found = taken.first_within(candidates, 0.05)
    # The fast engine keeps other inputs than streams do: its error says nothing of theirs.
    assert measured == [given[0], given[1], given[3]]
    assert (found.methods, found.room) == given[3]
    assert found.step_error.error <= 0.05
