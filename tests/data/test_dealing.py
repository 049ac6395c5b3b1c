"""Dealing, budgets and images for very many clients are those of the plain definitions, and share one memory."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.loading import make_config
from fedact.config.seeds import Purpose, generator
from fedact.data import Examples, Rows, in_blocks
from fedact.data.examples import Request
from fedact.data.partition import PARTITIONS, partition_examples
from fedact.data.partition.base import ENOUGH_EXAMPLES, HeldOutParts, Parts, bounds_of, hold_out
from fedact.data.partition.class_skew import Dirichlet, Shards
from fedact.data.readers.synthetic import CLASSES, COARSE, NOISE, SIDE, load
from fedact.reports.run.tables import partition_table
from fedact.training.prefix_cache import fingerprint
from tests.support.dealing import cases, deal_plainly, split_plainly

seeds = st.integers(0, 2**32 - 1)


@given(cases())
def test_dealing_is_what_lists_and_a_search_for_the_largest_give(case):
    first, second = case.random(), case.random()
    parts = partition_examples(case.rule, case.labels, case.clients, first)
    assert [part.tolist() for part in parts] == deal_plainly(case.rule, case.labels, case.clients, second)
    assert first.bit_generator.state == second.bit_generator.state


@given(cases())
def test_a_rule_splits_in_the_order_of_its_definition(case):
    expected = split_plainly(case.rule, case.labels, case.clients, case.random())
    parts = case.rule.split(case.labels, case.clients, case.random())
    assert [part.tolist() for part in parts] == [part.tolist() for part in expected]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), seeds)
def test_each_client_is_told_its_own_and_its_held_out_examples_alone_and_always_the_same(sizes, seed):
    dealt = Parts(np.arange(sum(sizes)), bounds_of(sizes))
    parts = HeldOutParts(dealt, seed)
    for client in reversed(range(len(parts))):
        expected = hold_out(dealt[client], generator(seed, Purpose.HOLD_OUT, client=client))
        for got, wanted in zip(parts[client], expected, strict=True):
            assert np.array_equal(got, wanted)
    training, held = parts.sizes()
    assert [(len(t), len(h)) for t, h in parts] == list(zip(training.tolist(), held.tolist(), strict=True))
    assert held.tolist() == [max(2, round(0.2 * size)) if size > 2 else 0 for size in sizes]


def test_parts_are_a_sequence():
    parts = Parts(np.arange(6), bounds_of([1, 2, 3]))
    assert [part.tolist() for part in parts] == [[0], [1, 2], [3, 4, 5]]
    assert parts[-1].tolist() == [3, 4, 5]
    assert [part.tolist() for part in parts[1:]] == [[1, 2], [3, 4, 5]]
    with pytest.raises(IndexError):
        parts[3]


@pytest.mark.parametrize("name", ["dirichlet", "pathological", "quantity"])
def test_a_client_that_nobody_asks_for_costs_a_few_bytes(name):
    labels = np.arange(1_000_000) % 10
    parts = partition_examples(PARTITIONS[name](), labels, 50_000, np.random.default_rng(0))
    assert len(parts) == 50_000
    assert parts.order.nbytes + parts.bounds.nbytes < 8 * (len(labels) + 50_001) + 1
    assert parts.sizes.min() >= ENOUGH_EXAMPLES
    assert np.array_equal(np.sort(parts.order), np.arange(len(labels)))


@given(st.integers(1, 40), seeds)
def test_budgets_are_dealt_by_counts_shuffled(clients, seed):
    config = make_config({"budget": "1KB:3,none:2,5KB:1", "clients": clients, "seed": seed})
    counts = [config.client_budgets().count(size) for size in (1000, None, 5000)]
    dealt = [size for size, count in zip((1000, None, 5000), counts, strict=True) for _ in range(count)]
    order = generator(seed, Purpose.BUDGETS).permutation(clients)
    assert list(config.client_budgets()) == [dealt[position] for position in order]


def images_one_by_one(count, test, random):
    """Make synthetic images as their definition says, one after the other."""
    prototypes = random.normal(size=(CLASSES, COARSE, COARSE, 3))
    for number in (count, test):
        labels = random.permutation(np.arange(number) % CLASSES)
        patterns = np.kron(prototypes, np.ones((1, SIDE // COARSE, SIDE // COARSE, 1)))
        images = np.empty((number, SIDE, SIDE, 3), np.uint8)
        for position, label in enumerate(labels):
            shift = random.integers(-COARSE, COARSE + 1, size=2)
            pattern = np.roll(patterns[label], tuple(shift), axis=(0, 1)) * random.uniform(20, 60)
            images[position] = np.clip(128 + pattern + random.normal(0, NOISE, size=pattern.shape), 0, 255)
        yield images, labels


@pytest.mark.parametrize(("count", "test"), [(1, 1), (64, 65), (200, 3)])
def test_synthetic_images_are_the_same_as_one_by_one(count, test):
    source = load(Request(None, count, test, np.random.default_rng(count)))
    one_by_one = images_one_by_one(count, test, np.random.default_rng(count))
    for examples, (images, labels) in zip((source.train, source.test), one_by_one, strict=True):
        assert np.array_equal(examples.images, images)
        assert np.array_equal(examples.labels, labels)


@given(st.lists(st.integers(0, 19), max_size=20), st.lists(st.integers(0, 5), max_size=6))
def test_examples_without_a_copy_are_those_of_a_copy(first, second):
    random = np.random.default_rng(0)
    all_of_them = Examples(random.integers(0, 256, (20, 2, 2, 3), dtype=np.uint8), np.arange(20))
    rows = np.array(first, int)
    copied, shown = all_of_them.take(rows), all_of_them.subset(rows)
    again = np.array([position for position in second if position < len(rows)], int)
    for got, wanted in ((shown, copied), (shown.subset(again), copied.take(again)), (shown.take(again), copied.take(again))):
        assert np.array_equal(np.asarray(got.images), wanted.images)
        assert got.images.shape == wanted.images.shape
        assert np.array_equal(got.labels, wanted.labels)
        assert len(got) == len(wanted)


def test_showing_examples_shares_their_memory():
    images = np.zeros((20, 2, 2, 3), np.uint8)
    examples = Examples(images, np.arange(20))
    assert examples.subset(np.arange(20)) is examples
    assert examples.subset(np.arange(5)).subset(np.arange(3)).images.array is images


def cells(table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_a_table_of_few_clients_has_a_line_for_each():
    labels = np.arange(300) % 10
    parts = HeldOutParts(partition_examples(Dirichlet(), labels, 20, np.random.default_rng(0)), 0)
    table = cells(partition_table(labels, parts))
    assert [row[:3] for row in table] == [[str(c), str(len(t)), str(len(h))] for c, (t, h) in enumerate(parts)]
    for (training, held_out), row in zip(parts, table, strict=True):
        counts = np.bincount(labels[np.concatenate([training, held_out])], minlength=10)
        assert row[3] == ", ".join(f"{label}: {count}" for label, count in enumerate(counts) if count)


def test_a_table_of_many_clients_accounts_for_all_of_them():
    labels = np.arange(30_000) % 3
    table = cells(
        partition_table(labels, HeldOutParts(partition_examples(Shards(), labels, 1000, np.random.default_rng(0)), 0))
    )
    assert len(table) == 21
    assert table[-1][0] == "980 others"
    counted = Counter()
    for row in table:
        counted.update(
            {int(k): int(v) for k, v in (each.split(": ") for each in row[3].removeprefix("together ").split(", "))}
        )
    assert counted == Counter(labels.tolist())


@given(st.integers(0, 3), st.integers(1, 5000))
def test_images_in_blocks_are_all_of_them_in_order(seed, count):
    images = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    rows = np.random.default_rng(seed).integers(0, count, count)
    assert np.array_equal(np.concatenate(list(in_blocks(images))), images)
    assert np.array_equal(np.concatenate(list(in_blocks(Rows(images, rows)))), images[rows])


def test_rows_and_their_copy_have_one_fingerprint():
    images, rows = np.arange(9000, dtype=np.uint8).reshape(-1, 1, 1, 3), np.arange(0, 3000, 2)
    assert fingerprint("a", Rows(images, rows)) == fingerprint("a", images[rows])
    assert fingerprint("a", Rows(images, rows)) != fingerprint("a", images[rows + 1])
