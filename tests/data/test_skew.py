"""Each skewed partition is skewed as it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.errors import ConfigError
from fedact.data.partition import PARTITIONS, partition_examples
from fedact.data.partition.class_skew import Dirichlet, Pathological
from fedact.data.partition.size_skew import Exponential, Linear, Quantity, Square, Weighted, sizes_at_least
from tests.support.dealing import RULES, cases

PATHOLOGICAL = tuple(rule for rule in RULES if isinstance(rule, Pathological))
WEIGHTED = tuple(rule for rule in RULES if isinstance(rule, Weighted))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Classes -------------------------------------------------------------------------------------------------------------------


@given(cases(PATHOLOGICAL))
def test_no_client_holds_more_classes_than_it_is_said_and_every_class_is_held(case):
    parts = case.rule.split(case.labels, case.clients, case.random())
    assert max(len(np.unique(case.labels[part])) for part in parts) <= case.rule.num_classes_per_partition
    assert sorted(np.concatenate(parts)) == list(range(len(case.labels)))


@given(cases(PATHOLOGICAL))
def test_the_holders_of_a_class_hold_the_same_number_of_its_examples(case):
    parts, classes = case.rule.split(case.labels, case.clients, case.random()), np.unique(case.labels)
    chosen = case.rule.classes_of(case.clients, len(classes), case.random())
    assert all(len(set(own)) == case.rule.num_classes_per_partition for own in chosen.tolist())
    for number, label in enumerate(classes):
        counts = np.array([np.count_nonzero(case.labels[part] == label) for part in parts])
        holds = (chosen == number).any(axis=1)
        assert not counts[~holds].any()
        assert np.ptp(counts[holds]) <= 1


# https://flower.ai/docs/datasets/ref-api/flwr_datasets.partitioner.PathologicalPartitioner.html: the class of number
# (partition id + i) % classes for each i below the number of classes of a partition.
def test_deterministic_classes_of_a_known_case():
    chosen = Pathological(2, "deterministic").classes_of(4, 3, rng())
    assert chosen.tolist() == [[0, 1], [1, 2], [2, 0], [0, 1]]


@given(st.integers(1, 12), st.integers(1, 40), st.data())
def test_first_deterministic_draws_all_but_the_first_class(classes, clients, data):
    each = data.draw(st.integers(-(-classes // clients), classes))
    chosen = Pathological(each, "first-deterministic").classes_of(clients, classes, rng())
    assert chosen[:, 0].tolist() == [client % classes for client in range(clients)]
    assert set(chosen.ravel().tolist()) == set(range(classes))
    assert all(len(set(own)) == each for own in chosen.tolist())


def test_random_classes_are_each_as_likely_and_each_pair_too():
    chosen = np.sort(Pathological(2).classes_of(60_000, 4, rng()), axis=1)
    pairs, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(pairs) == 6
    # Four standard deviations of a binomial with 60,000 draws at 1/6.
    assert np.all(np.abs(counts - 10_000) < 4 * 92)


def test_a_class_that_nobody_drew_takes_the_place_of_one_drawn_twice():
    for seed in range(20):
        chosen = Pathological(2).classes_of(5, 10, rng(seed))
        assert sorted(chosen.ravel()) == list(range(10))


@pytest.mark.parametrize(
    ("rule", "clients", "said"),
    [
        (Pathological(11), 20, "examples have 10 classes"),
        (Pathological(10**30), 20, "examples have 10 classes"),
        (Pathological(3), 3, "hold at most 9 of 10 classes"),
        (Pathological(3, "deterministic"), 7, "hold the first 9 of 10 classes"),
    ],
)
def test_classes_that_cannot_be_held_are_refused(rule, clients, said):
    with pytest.raises(ConfigError, match=said):
        partition_examples(rule, np.arange(300) % 10, clients, rng())


@given(cases((Dirichlet(self_balancing=True), Dirichlet(1e-5, self_balancing=True))))
def test_a_client_with_more_than_an_even_share_gets_none_of_the_classes_after(case):
    parts, even = case.rule.split(case.labels, case.clients, case.random()), len(case.labels) / case.clients
    counts = np.array([[np.count_nonzero(case.labels[part] == label) for label in np.unique(case.labels)] for part in parts])
    before = np.cumsum(counts, axis=1) - counts
    assert not counts[before > even].any()


def test_balancing_balances():
    labels = np.arange(5000) % 50
    spreads = [
        np.mean([np.std(Dirichlet(0.1, balanced).split(labels, 20, rng(seed)).sizes) for seed in range(5)])
        for balanced in (False, True)
    ]
    assert spreads[1] < 0.7 * spreads[0]


# Sizes ---------------------------------------------------------------------------------------------------------------------


def shares_plainly(minimum: int, weights: np.ndarray, total: int) -> np.ndarray:
    """Raise whoever is below the minimum to it and share the rest among the others, until nobody is below."""
    low: set[int] = set()
    while True:
        others = [client for client in range(len(weights)) if client not in low]
        shares = np.full(len(weights), float(minimum))
        shares[others] = (total - minimum * len(low)) * weights[others] / weights[others].sum()
        below = {client for client in others if shares[client] < minimum - 1e-6}
        if not below:
            return shares
        low |= below


@given(
    st.lists(st.floats(0, 1e3).map(lambda w: round(w, 6)), min_size=1, max_size=30), st.integers(1, 20), st.integers(0, 500)
)
def test_sizes_are_within_one_of_their_share_and_none_is_below_the_minimum(weights, minimum, spare):
    weights = np.array(weights)
    weights[0] += 1
    total = minimum * len(weights) + spare
    sizes = sizes_at_least(minimum, weights, total)
    assert sizes.sum() == total
    assert sizes.min() >= minimum
    assert np.all(np.abs(sizes - shares_plainly(minimum, weights, total)) < 1 + 1e-6)


@pytest.mark.parametrize(
    ("rule", "total", "sizes"),
    [
        (Linear(), 200, [20, 40, 60, 80]),
        (Square(), 300, [10, 40, 90, 160]),
        (Square(), 150, [10, 19, 44, 77]),
        (Exponential(), 1000, [32, 87, 237, 644]),
        (Exponential(min_partition_size=50), 1000, [50, 86, 232, 632]),
        (Linear(), 40, [10, 10, 10, 10]),
    ],
)
def test_sizes_of_known_cases(rule, total, sizes):
    assert partition_examples(rule, np.zeros(total, int), 4, rng()).sizes.tolist() == sizes


@pytest.mark.parametrize("rule", [Linear(), Square(), Exponential()])
def test_a_client_holds_no_less_than_the_one_before(rule):
    assert np.all(np.diff(partition_examples(rule, np.zeros(3000, int), 100, rng()).sizes) >= 0)


def test_an_exponential_of_many_clients_leaves_all_but_the_last_few_the_minimum():
    sizes = partition_examples(Exponential(), np.zeros(1_100_000, int), 100_000, rng()).sizes
    assert sizes.min() == 10
    assert np.count_nonzero(sizes > 10) <= 12
    assert sizes[-1] / sizes[-2] == pytest.approx(np.e, rel=1e-3)


@given(cases(WEIGHTED))
def test_sizes_alone_are_skewed_and_the_classes_are_drawn_at_random(case):
    parts = case.rule.split(case.labels, case.clients, case.random())
    random = case.random()
    sizes = sizes_at_least(case.rule.min_partition_size, case.rule.weights(case.clients, random), len(case.labels))
    assert np.array_equal(parts.sizes, sizes)
    assert np.array_equal(parts.order, random.permutation(len(case.labels)))


def test_small_alpha_gives_unequal_clients_and_large_alpha_equal_ones():
    def largest(alpha: float) -> float:
        return np.mean(
            [partition_examples(Quantity(alpha), np.zeros(2000, int), 10, rng(seed)).sizes.max() for seed in range(10)]
        )

    assert largest(0.1) > 900
    assert largest(1000) < 230


@pytest.mark.parametrize("name", PARTITIONS)
def test_a_hundred_thousand_clients_are_dealt_to(name):
    labels = np.arange(1_000_000) % 100
    parts = partition_examples(PARTITIONS[name](), labels, 100_000, rng())
    assert parts.sizes.tolist() == [10] * 100_000
