import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedact.config.budgets import largest_remainder
from fedact.config.errors import ConfigError
from fedact.config.spec import build, spell
from fedact.data.partition import PARTITIONS, halves, partition_examples, stratified
from fedact.data.partition.base import even_sizes, hold_out
from fedact.data.partition.class_skew import Dirichlet, Shards
from fedact.data.partition.size_skew import Iid
from tests.support.dealing import RULES, cases

labelled = st.lists(st.integers(0, 9), min_size=10, max_size=300).map(np.array)
seeds = st.integers(0, 2**32 - 1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(cases())
def test_every_position_is_dealt_exactly_once_and_nobody_gets_too_few(case):
    parts = partition_examples(case.rule, case.labels, case.clients, case.random())
    assert len(parts) == case.clients
    assert sorted(np.concatenate(parts)) == list(range(len(case.labels)))
    assert min(map(len, parts)) >= case.rule.min_partition_size
    assert all(part.dtype == np.int64 and np.all(np.diff(part) > 0) for part in parts)


@given(cases())
def test_the_same_seed_deals_the_same(case):
    first, second = (partition_examples(case.rule, case.labels, case.clients, case.random()) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_another_seed_deals_otherwise():
    labels = np.arange(500) % 10
    for rule in RULES:
        first, second = (partition_examples(rule, labels, 20, rng(seed)) for seed in (0, 1))
        assert any(not np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_more_clients_than_examples_allow_are_refused():
    with pytest.raises(ConfigError, match="at most 3 clients"):
        partition_examples(Iid(), np.zeros(39, int), 4, rng())
    with pytest.raises(ConfigError, match="at most 0 clients"):
        partition_examples(Iid(), np.zeros(0, int), 1, rng())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_as_many_examples_as_a_rule_needs_are_enough(rule):
    labels = np.arange(rule.examples_needed(25)) % 10
    assert min(map(len, partition_examples(rule, labels, 25, rng()))) >= rule.min_partition_size


def test_the_least_possible_number_of_examples_is_dealt_evenly():
    parts = partition_examples(Dirichlet(0.01), np.arange(100) % 10, 10, rng())
    assert [len(part) for part in parts] == [10] * 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[
            (f"{name}:alpha={bad}", "alpha is above 0")
            for name in ("dirichlet", "quantity")
            for bad in ("inf", "nan", "0", "-1")
        ],
        ("shards:per_client=0", "per_client is at least 1"),
        ("pathological:num_classes_per_partition=0", "num_classes_per_partition is at least 1"),
        ("pathological:class_assignment_mode=alphabetic", "allowed are random, deterministic, first-deterministic"),
        ("dirichlet:self_balancing=maybe", "self_balancing"),
        *[(f"{name}:min_partition_size=2", "min_partition_size is at least 3") for name in PARTITIONS],
        *[(f"{name}:min_partition_size=0.5", "0.5") for name in PARTITIONS],
    ],
)
def test_settings_without_a_meaning_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        build("partition", PARTITIONS, text)


@pytest.mark.parametrize(
    "text",
    [
        *PARTITIONS, "dirichlet:alpha=0.1", "shards:per_client=3", "iid:min_partition_size=4", "quantity:alpha=2",
        "dirichlet:alpha=0.1,self_balancing=true,min_partition_size=25",
        "pathological:num_classes_per_partition=3,class_assignment_mode=first-deterministic",
    ],
)  # fmt: skip
def test_a_partition_is_spelled_as_it_was_written_and_without_what_is_the_default(text):
    assert spell(text.split(":")[0], build("partition", PARTITIONS, text)) == text


def test_the_names_of_partitions_and_settings_in_runs_that_are_there_mean_the_same():
    assert build("partition", PARTITIONS, "dirichlet:alpha=0.3") == Dirichlet()
    assert build("partition", PARTITIONS, "shards:per_client=2,min_partition_size=10") == Shards()
    assert spell("dirichlet", Dirichlet()) == "dirichlet"


def test_an_even_dirichlet_is_even():
    labels = np.arange(1000) % 10
    assert all(240 <= len(part) <= 260 for part in partition_examples(Dirichlet(1e6), labels, 4, rng()))


def test_an_alpha_whose_sum_overflows_is_even_or_refused():
    try:
        parts = partition_examples(Dirichlet(1e308), np.arange(1000) % 10, 4, rng())
    except ConfigError:
        return
    assert all(240 <= len(part) <= 260 for part in parts)


@pytest.mark.parametrize("alpha", [1e-300, 1e-5, 1e-2])
def test_a_tiny_alpha_still_spreads_the_classes_over_different_clients(alpha):
    parts = Dirichlet(alpha).split(np.arange(1000) % 10, 20, rng())
    assert sum(len(part) > 0 for part in parts) > 3


def test_small_alpha_skews_and_large_alpha_does_not():
    labels = np.arange(2000) % 10

    def largest_class(alpha):
        parts = partition_examples(Dirichlet(alpha), labels, 10, rng())
        return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])

    assert largest_class(0.1) > 0.35
    assert largest_class(1000) < 0.15


def test_a_client_of_two_shards_sees_few_classes():
    labels = np.arange(1000) % 10
    assert max(len(np.unique(labels[part])) for part in Shards(2).split(labels, 10, rng())) <= 4


def test_more_shards_than_examples_are_refused():
    with pytest.raises(ConfigError, match="per_client"):
        partition_examples(Shards(1000), np.arange(100) % 10, 2, rng())


@pytest.mark.parametrize("name", PARTITIONS)
def test_the_minimum_of_every_partition_is_ten_and_can_be_another(name):
    labels = np.arange(300) % 10
    assert build("partition", PARTITIONS, name).min_partition_size == 10
    parts = partition_examples(build("partition", PARTITIONS, f"{name}:min_partition_size=15"), labels, 20, rng())
    assert [len(part) for part in parts] == [15] * 20
    with pytest.raises(ConfigError, match="at most 18 clients"):
        partition_examples(build("partition", PARTITIONS, f"{name}:min_partition_size=16"), labels, 20, rng())


@given(st.integers(0, 500), st.integers(1, 50))
def test_even_sizes_are_those_of_numpys_array_split(total, pieces):
    assert even_sizes(total, pieces).tolist() == [len(piece) for piece in np.array_split(np.arange(total), pieces)]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.integers(0, 10**6))
def test_largest_remainder_adds_up_and_stays_within_one_of_each_share(shares, total):
    counts = largest_remainder(np.array(shares), total)
    assert counts.sum() == total
    assert np.all(np.abs(counts - np.array(shares) * total / np.sum(shares)) < 1 + 1e-6)
    assert np.all(counts >= 0)


def test_largest_remainder_of_shares_at_the_ends_of_floating_point():
    assert largest_remainder(np.array([1e308, 1e308]), 4).tolist() == [2, 2]
    assert largest_remainder(np.array([1e-308, 1e-308]), 4).tolist() == [2, 2]
    assert largest_remainder(np.array([1e300, 1e-300]), 3).tolist() == [3, 0]


def test_largest_remainder_of_a_known_case():
    assert largest_remainder(np.array([47, 16, 15.8, 12, 6.1, 3.1]), 10).tolist() == [5, 2, 1, 1, 1, 0]


class_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
skewed_sizes = st.one_of(
    class_sizes,
    st.builds(lambda sizes, giant: [giant, *sizes], class_sizes, st.integers(100, 2000)),
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
    st.integers(2, 60).map(lambda classes: [1] * classes),
).filter(lambda sizes: sum(sizes) > 1)


@given(skewed_sizes, seeds)
@example([30, 100, 30], 0)
def test_halves_are_disjoint_cover_all_and_are_of_one_size(sizes, seed):
    labels = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    first, second = halves(labels, rng(seed))
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert abs(len(first) - len(second)) <= 1
    assert min(len(first), len(second)) >= 1
    again = halves(labels, rng(seed))
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])


@given(skewed_sizes, seeds)
def test_halves_have_classes_of_their_own_as_far_as_there_is_room(sizes, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    quota = 1 if len(sizes) == 3 else len(sizes) // 4
    both = [np.bincount(labels[half], minlength=len(sizes)) for half in halves(labels, rng(seed))]
    shared = np.minimum(*both) > 0
    for own, other in (both, both[::-1]):
        room = own.sum() - own[other == 0].sum()
        assert np.count_nonzero(other == 0) >= quota or np.all(np.add(*both)[shared] > room)


@given(st.integers(3, 20), seeds)
def test_halves_are_skewed_by_class(classes, seed):
    labels = np.repeat(np.arange(classes), 10)
    first, second = (np.bincount(labels[half], minlength=classes) for half in halves(labels, rng(seed)))
    alone = max(1, classes // 4)
    assert sorted(first) == [0] * alone + [5] * (classes - 2 * alone) + [10] * alone
    assert np.array_equal(first + second, np.full(classes, 10))


@given(labelled, seeds)
def test_held_out_examples_are_a_fifth_and_never_trained_on(labels, seed):
    training, held_out = hold_out(np.arange(len(labels)), rng(seed))
    assert sorted([*training, *held_out]) == list(range(len(labels)))
    assert len(held_out) == max(2, round(len(labels) / 5))


@given(labelled, st.integers(1, 400), seeds)
def test_stratified_keeps_every_class_within_one_of_its_share(labels, size, seed):
    chosen = stratified(labels, size, rng(seed))
    assert len(chosen) == len(set(chosen.tolist())) == min(size, len(labels))
    for label in np.unique(labels):
        share = np.mean(labels == label) * len(chosen)
        assert abs(np.count_nonzero(labels[chosen] == label) - share) < 1 + 1e-9
