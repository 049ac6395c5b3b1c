"""How many layers to train, and how fast: the depths that a plan may have, and the limit on a step's time."""

from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedact
from fedact.planner import slowdown
from fedact.planner.search import candidate_depths, is_worth_it
from tests.support.planned import batch, net


def test_without_a_trial_a_plan_trains_as_many_layers_as_it_is_told_to_at_most():
    plans = [fedact.make_plan(net(), None, batch(4), "exact", most_layers=most) for most in (None, 0, 1, 2, 100)]
    assert [(plan.layers, plan.status) for plan in plans] == [
        (4, "ok"), (0, "head-only"), (1, "ok"), (2, "ok"), (4, "ok"),
    ]  # fmt: skip
    assert not any(plan.reason for plan in plans)


def test_given_layers_are_trained_whatever_a_trial_chose():
    assert fedact.make_plan(net(), None, batch(4), "exact", 2, most_layers=1).layers == 2


def test_what_the_budget_takes_from_the_chosen_layers_is_the_reason():
    whole = fedact.make_plan(net(), None, batch(4), "exact", most_layers=3)
    plan = fedact.make_plan(net(), whole.saved_bytes // 8, batch(4), "exact", scope="saved", most_layers=3)
    assert plan.layers < 3
    assert plan.reason.startswith(f"layers 3 to {plan.layers}")


@pytest.mark.parametrize(
    ("errors", "worth"), [({"a": 0.0, "b": 0.9}, True), ({"a": 0.5, "b": 0.6}, False), ({"a": 0.4}, True), (None, False)]
)
def test_a_depth_with_more_error_than_signal_is_not_worth_it(errors, worth):
    assert is_worth_it(errors) is worth


@given(st.integers(1, 60).flatmap(lambda most: st.integers(0, most).map(lambda least: range(least, most + 1))))
def test_the_depths_that_are_looked_at_are_the_shallow_ones_and_the_deepest(depths):
    looked_at = candidate_depths(depths)
    assert looked_at == sorted(set(looked_at))
    assert {depth for depth in depths if depth < 4 or depth == depths[-1]} <= set(looked_at) <= set(depths)


# The slowdown --------------------------------------------------------------------------------------------------------------


def set_clock(monkeypatch, seconds_of) -> None:
    """Let every timed step take as long as it is told by the model it is taken on and its number of examples."""
    now, step = [0.0], slowdown.micro_step

    def timed(model, x, y, *others):
        now[0] += seconds_of(model, len(y))
        return step(model, x, y, *others)

    monkeypatch.setattr(slowdown, "micro_step", timed)
    monkeypatch.setattr(slowdown, "_now", lambda x: now[0])


def is_plain(model: nn.Module) -> bool:
    return not any(method.traits.saves_less for module in model.modules() if (method := getattr(module, "method", None)))


def planned(budget, method, bound):
    return fedact.make_plan(net(), budget, batch(8), method, 2, "saved", max_slowdown=bound)


@pytest.mark.parametrize(("seconds", "bound", "kept"), [(2.0, 2.0, True), (2.0, 1.99, False), (0.5, 0.6, True)])
def test_a_plan_is_kept_where_it_takes_no_longer_than_the_bound(monkeypatch, seconds, bound, kept):
    set_clock(monkeypatch, lambda model, size: 1.0 if is_plain(model) else seconds)
    plan = planned(10**6, "quantize:bits=4", bound)
    assert (plan.status == "ok") == kept
    if kept:
        assert plan.slowdown == pytest.approx(seconds)
    else:
        assert f"takes more than {bound:g} times as long as plain training" in plan.reason


def test_a_batch_takes_as_long_as_all_its_micro_batches(monkeypatch):
    set_clock(monkeypatch, lambda model, size: 1.0)
    budget = fedact.make_plan(net(), None, batch(8), "exact", 2).saved_bytes // 2
    plan = planned(budget, "exact", 100.0)
    assert plan.micro_batch < 8
    assert plan.slowdown == -(-8 // plan.micro_batch)


@pytest.mark.parametrize("bound", [1.0, 2.0, 4.0, 8.0])
def test_a_mix_has_no_more_micro_batches_than_there_is_time_for(monkeypatch, bound):
    set_clock(monkeypatch, lambda model, size: 1.0)
    plan = planned(4_000, "auto", bound)
    assert plan.status != "skipped"
    assert plan.slowdown == -(-8 // plan.micro_batch) <= bound


def test_without_a_bound_nothing_is_timed(monkeypatch):
    set_clock(monkeypatch, lambda model, size: pytest.fail("timed"))
    assert planned(9_000, "hosvd", None).slowdown is None


@pytest.mark.parametrize(("bound", "reason"), [(None, "no plan of the head alone was found"), (2.0, "more than 2 times")])
def test_a_plan_is_skipped_with_a_reason_with_a_limit_or_without_where_the_bytes_were_enough(monkeypatch, bound, reason):
    monkeypatch.setattr(import_module("fedact.planner.make_plan"), "search", lambda *_: None)
    plan = fedact.make_plan(net(), "1MB", batch(8), "exact", 2, max_slowdown=bound)
    assert plan.status == "skipped"
    assert reason in plan.reason
