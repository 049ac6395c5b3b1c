"""The score on the clients' classes and on the others, against counts by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.data import VOID
from fedact.models.tasks import TASKS
from fedact.training.forgetting import client_accuracy, forgotten, unheld_accuracy

CLASSES = 5
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=80)
holdings = st.lists(st.integers(0, 40), min_size=CLASSES, max_size=CLASSES)


def classified(pairs, batch=7):
    """Return the outcome of (label, found class) pairs."""
    count = TASKS["classification"].count(CLASSES)
    for start in range(0, len(pairs), batch):
        labels, found = torch.tensor(pairs[start : start + batch]).T
        count.add(torch.nn.functional.one_hot(found, CLASSES).float(), labels)
    return count.outcome()


@given(pairs, holdings)
def test_the_clients_accuracy_is_the_expected_one_of_an_example_drawn_as_the_clients_hold_them(pairs, held):
    shares = {label: [found == label for own, found in pairs if own == label] for label in range(CLASSES)}
    drawn = [label for label in range(CLASSES) for _ in range(held[label]) if shares[label]]
    expected = np.mean([np.mean(shares[label]) for label in drawn]) if drawn else None
    outcome = classified(pairs)
    assert client_accuracy(outcome, np.array(held)) == (None if expected is None else pytest.approx(expected))
    assert outcome.score == pytest.approx(np.mean([label == found for label, found in pairs]))


@given(pairs, holdings)
def test_the_unheld_accuracy_is_that_on_the_test_examples_of_the_other_classes(pairs, held):
    others = [label == found for label, found in pairs if not held[label]]
    expected = pytest.approx(np.mean(others)) if others else None
    assert unheld_accuracy(classified(pairs), np.array(held)) == expected


@given(pairs)
def test_clients_that_hold_the_test_sets_proportions_have_the_whole_accuracy(pairs):
    outcome = classified(pairs)
    held = np.bincount([label for label, _ in pairs], minlength=CLASSES) * 3
    assert client_accuracy(outcome, held) == pytest.approx(outcome.score)
    assert unheld_accuracy(outcome, held) is None


def test_of_mean_iou_each_part_is_the_mean_over_its_classes():
    pytest.importorskip("torchmetrics")
    truth = torch.tensor([[[0, 0, 1, 1], [2, 2, 2, VOID]]])
    found = torch.tensor([[[0, 1, 1, 1], [2, 0, 2, 0]]])
    count = TASKS["segmentation"].count(4)
    count.add(torch.nn.functional.one_hot(found, 4).permute(0, 3, 1, 2).float(), truth)
    outcome = count.outcome()
    # Class 0: 1 of {2 + 2 - 1}; class 1: 2 of 3; class 2: 2 of 3; nobody saw class 3.
    assert outcome.class_examples == (2, 2, 3, 0)
    assert client_accuracy(outcome, np.array([900, 1, 0, 7])) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert unheld_accuracy(outcome, np.array([900, 1, 0, 7])) == pytest.approx(2 / 3)
    assert unheld_accuracy(outcome, np.array([900, 1, 1, 0])) is None


def test_what_fell_is_forgotten_and_what_rose_is_below_0():
    assert forgotten(0.75, 0.5) == 0.25
    assert forgotten(0.5, 0.75) == -0.25
    assert forgotten(None, 0.5) is None
    assert forgotten(0.5, None) is None
