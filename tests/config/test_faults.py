"""Simulated faults: how often, the same for all, and what a damaged update looks like."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.faults import DAMAGES, Fault, Faults, damage_update, draw_fault, make_faults
from fedact.config.loading import make_config

UPDATE = {"deep.weight": torch.ones(2, 3), "head.bias": torch.ones(4)}
PLACES = [(number, client) for number in range(1, 101) for client in range(60)]


def test_faults_come_as_often_as_they_were_asked_for():
    faults = Faults(drop=0.1, slow=0.2, corrupt=0.05, lag=30)
    seen = [fault for place in PLACES if (fault := draw_fault(faults, 3, *place))]
    for kind, share in (("drop", 0.1), ("slow", 0.2), ("corrupt", 0.05)):
        count = sum(fault.kind == kind for fault in seen)
        # Four standard deviations of so many draws.
        assert abs(count / len(PLACES) - share) < 4 * (share * (1 - share) / len(PLACES)) ** 0.5
    lags = [fault.lag for fault in seen]
    assert sum(lags) / len(lags) == pytest.approx(30, rel=4 / len(lags) ** 0.5)
    late = sum(lag > 30 for lag in lags) / len(lags)
    assert late == pytest.approx(0.368, abs=0.05)
    damages = [fault.damage for fault in seen if fault.kind == "corrupt"]
    assert all(damages.count(damage) > len(damages) / 8 for damage in DAMAGES)


def test_they_follow_from_seed_round_and_client():
    faults = Faults(drop=0.5, corrupt=0.5)
    draws = [[draw_fault(faults, seed, *place) for place in PLACES[:50]] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({fault.place for fault in draws[0]}) == 50


shares = st.floats(0, 0.33)


@given(shares, shares, shares, st.integers(0, 2**32 - 1), st.integers(1, 1000), st.integers(0, 1000))
def test_who_is_hit_at_some_rates_is_hit_at_higher_ones(drop, slow, corrupt, seed, number, client):
    chain = [Faults(), Faults(drop=drop), Faults(drop, slow), Faults(drop, slow, corrupt), Faults(drop=1)]
    hits = [draw_fault(faults, seed, number, client) is not None for faults in chain]
    assert hits[0] is False
    assert hits[-1] is True
    assert all(before <= after for before, after in pairwise(hits))


@given(st.floats(0, 1000), st.none() | st.floats(0.001, 1000))
def test_who_vanishes_or_comes_after_the_deadline_is_lost(lag, deadline):
    assert Fault("drop", lag, "nan", 0.5).loss_reason(deadline)
    assert Fault("corrupt", lag, "nan", 0.5).loss_reason(deadline) is None
    late = Fault("slow", lag, "nan", 0.5).loss_reason(deadline)
    assert bool(late) == (deadline is not None and lag > deadline)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", UPDATE)
def test_damage_is_done_to_one_tensor_and_to_a_copy(damage, name):
    after = damage_update(UPDATE, damage, name)
    other = next(n for n in UPDATE if n != name)
    assert torch.equal(after[other], torch.ones_like(UPDATE[other]))
    assert all(bool((tensor == 1).all()) for tensor in UPDATE.values())
    as_it_was = set(after) == set(UPDATE) and after[name].shape == UPDATE[name].shape and bool((after[name] == 1).all())
    assert not as_it_was


@given(shares, shares, shares, st.floats(0.001, 1e6))
def test_what_is_written_reads_back(drop, slow, corrupt, lag):
    written = f"drop={drop!r},slow={slow!r},corrupt={corrupt!r},lag={lag!r}"
    config = make_config({"faults": written})
    assert make_faults(config.faults) == Faults(drop, slow, corrupt, lag)
    assert make_config({"faults": config.faults}) == config
