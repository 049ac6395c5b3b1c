"""Random networks, hooks, steps and methods: plain autograd's gradients, or a refusal; never others in silence."""

from collections import Counter

import pytest

from tests.support.random_networks import RandomNet, RandomSeriesNet, RandomTokenNet, outcome


def outcomes(seeds: range, kind: type[RandomNet] = RandomNet) -> Counter[str]:
    found = {seed: outcome(seed, kind) for seed in seeds}
    different = {seed: said for seed, said in found.items() if said not in ("equal", "refused", "no gradient")}
    assert different == {}
    return Counter(found.values())


def test_thirty_random_networks_have_plain_autograds_gradients():
    found = outcomes(range(30))
    assert found["equal"] >= 24, found


@pytest.mark.exhaustive
def test_five_hundred_random_networks_have_plain_autograds_gradients():
    found = outcomes(range(1000, 1500))
    assert found["equal"] >= 400, found


@pytest.mark.parametrize("kind", [RandomSeriesNet, RandomTokenNet])
def test_twenty_random_networks_of_series_and_of_tokens_have_plain_autograds_gradients(kind):
    found = outcomes(range(20), kind)
    assert found["equal"] >= 15, found


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [RandomSeriesNet, RandomTokenNet])
def test_three_hundred_random_networks_of_series_and_of_tokens_have_plain_autograds_gradients(kind):
    found = outcomes(range(1000, 1300), kind)
    assert found["equal"] >= 240, found
