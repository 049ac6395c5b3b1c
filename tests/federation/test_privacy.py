"""Local differential privacy: the update's norm, the noise's spread, whose numbers it is, and what it sees."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.privacy import make_privacy
from fedact.federation.client_mods import privatize_update
from fedact.federation.local_grid import LocalGrid
from tests.support.portions import examples

RECEIVED = {"deep.weight": torch.full((300, 50), 2.0), "head.weight": torch.ones(40, 25), "tail": torch.zeros(7)}
TRAINED = ("head.weight", "deep.weight")
"""In another order than they were received in, and not all of them."""


def sent(privacy: str, step: float = 1.0, **order) -> dict[str, torch.Tensor]:
    """Return what leaves the device of a client whose entries all moved by the same step."""
    LocalGrid(ClientApp(), clients=1)
    config = ConfigRecord({"privacy": privacy, "round": 1, "client": 0, "noise-seed": 0, **order})
    message = Message(RecordDict({"arrays": ArrayRecord(RECEIVED), "config": config}), 2, "train")
    update = ArrayRecord({name: RECEIVED[name] + step for name in TRAINED})
    reply = privatize_update(message, None, lambda asked, _: Message(RecordDict({"arrays": update}), reply_to=asked))
    assert not reply.has_error()
    return reply.content["arrays"].to_torch_state_dict()


def change(tensors) -> torch.Tensor:
    return torch.cat([(tensors[name] - RECEIVED[name]).flatten().double() for name in TRAINED])


def test_only_what_the_client_trained_is_looked_at_and_sent():
    tensors = sent("local_dp")
    assert tuple(tensors) == TRAINED
    assert all(tensors[name].dtype == torch.float32 for name in TRAINED)


@examples(20)
@given(st.floats(0.01, 100), st.floats(0.001, 10))
def test_without_noise_the_update_is_clipped_to_the_norm_and_keeps_its_direction(norm, step):
    moved = change(sent(f"local_dp:clipping_norm={norm!r},sensitivity=1e-300", step))
    whole = step * len(moved) ** 0.5
    assert float(moved.norm()) == pytest.approx(min(norm, whole), rel=5e-3, abs=2e-5)


@pytest.mark.parametrize(("settings", "sensitivity"), [("", 2.0), ("clipping_norm=0.5,", 1.0), ("sensitivity=3,", 3.0)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (0.9, 0.01)])
def test_the_noise_has_the_gaussian_mechanisms_standard_deviation(settings, sensitivity, epsilon, delta):
    tensors = sent(f"local_dp:{settings}epsilon={epsilon},delta={delta}")
    expected = sensitivity * np.sqrt(2 * np.log(1.25 / delta)) / epsilon
    moved = change(tensors)
    # 16,000 draws: a standard deviation is known to half a percent.
    assert float(moved.std()) == pytest.approx(expected, rel=0.03)
    assert abs(float(moved.mean())) < 5 * expected / len(moved) ** 0.5 + 0.05


def test_none_changes_nothing():
    assert torch.equal(change(sent("none")), torch.ones(16_000, dtype=torch.float64))


def test_noise_follows_from_seed_round_and_client_and_leaves_numpys_generator_alone():
    np.random.seed(5)
    expected = np.random.RandomState(5).random(3)
    first = sent("local_dp")
    assert (np.random.random(3) == expected).all()
    assert all(torch.equal(first[name], again) for name, again in sent("local_dp").items())
    for other in ({"noise-seed": 1}, {"round": 2}, {"client": 1}):
        assert not torch.equal(first["head.weight"], sent("local_dp", **other)["head.weight"])


def test_a_device_that_is_told_no_seed_draws_its_own_noise(monkeypatch):
    without = ConfigRecord({"privacy": "local_dp", "round": 1, "client": 0})
    monkeypatch.setattr("tests.federation.test_privacy.ConfigRecord", lambda _: without)
    assert not torch.equal(change(sent("local_dp")), change(sent("local_dp")))


def test_an_update_of_nothing_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="nothing but zeros"):
        sent("local_dp", step=0.0)


def test_the_reach_of_two_clipped_updates_is_twice_the_norm():
    assert make_privacy("local_dp:clipping_norm=0.7").reach == 1.4
    assert make_privacy("local_dp:clipping_norm=0.7,sensitivity=0.7").reach == 0.7
