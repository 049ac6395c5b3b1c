"""A plan's error is that of its step, not of an estimate; of plans that are as fast the one with less error is taken."""

from types import SimpleNamespace

import pytest

import fedact
from fedact.planner.allocation import NEGLIGIBLE
from fedact.planner.selection import fastest_first
from fedact.planner.sensitivity import GradientErrors
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
