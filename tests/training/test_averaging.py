"""Each tensor is the mean, weighted by examples, over the clients that trained it: against a plain sum in numpy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.training.averaging import RunningMean

LAYERS = ("first", "second", "third", "head")
"""A client of depth n trains the last n."""

values = st.floats(-100, 100, width=32)
client = st.tuples(st.integers(0, len(LAYERS)), st.integers(0, 500), st.lists(values, min_size=8, max_size=8))
fleets = st.lists(client, max_size=6)


def tensors_of(depth: int, numbers: list[float]) -> dict[str, torch.Tensor]:
    """Return a weight and a bias for each trained layer."""
    pairs = zip(LAYERS, np.reshape(np.float32(numbers), (4, 2)), strict=True)
    every = {
        f"{layer}.{kind}": torch.tensor([v])
        for layer, pair in pairs
        for kind, v in zip(("weight", "bias"), pair, strict=True)
    }
    return {name: t for name, t in every.items() if name.partition(".")[0] in LAYERS[len(LAYERS) - depth :]}


def averaged(fleet) -> tuple[RunningMean, dict[str, torch.Tensor]]:
    mean, start = RunningMean(), tensors_of(len(LAYERS), [7.0] * 8)
    for depth, weight, numbers in fleet:
        mean.add(tensors_of(depth, numbers), weight)
    return mean, mean.over(start)


@given(fleets)
def test_every_tensor_is_the_weighted_mean_over_those_that_trained_it_and_stays_where_nobody_did(fleet):
    _, actual = averaged(fleet)
    assert set(actual) == set(tensors_of(len(LAYERS), [0.0] * 8))
    for place, name in enumerate(actual):
        took_part = [(w, numbers[place]) for depth, w, numbers in fleet if place // 2 >= len(LAYERS) - depth]
        total = sum(w for w, _ in took_part)
        expected = np.average([v for _, v in took_part], weights=[w for w, _ in took_part]) if total else 7.0
        np.testing.assert_allclose(actual[name].item(), expected, rtol=1e-6, atol=1e-5)


@given(fleets)
def test_who_trained_a_layer_is_counted_in_the_models_order(fleet):
    mean, start = averaged(fleet)
    expected = {
        layer: sum(1 for depth, weight, _ in fleet if weight and place >= len(LAYERS) - depth)
        for place, layer in enumerate(LAYERS)
    }
    assert list(mean.trained_by(start).items()) == [(layer, count) for layer, count in expected.items() if count]


@given(fleets, st.randoms(use_true_random=False))
def test_the_order_of_the_replies_does_not_matter(fleet, random):
    shuffled = random.sample(fleet, len(fleet))
    (_, one), (_, other) = averaged(fleet), averaged(shuffled)
    assert all(torch.allclose(one[name], other[name], rtol=1e-6, atol=1e-5) for name in one)


@given(st.integers(1, 4), st.lists(values, min_size=8, max_size=8))
def test_clients_without_examples_leave_the_others_mean_alone(depth, numbers):
    trained = (depth, 3, numbers)
    idle = (4, 0, [50.0] * 8)
    (alone, expected), (together, actual) = averaged([trained]), averaged([idle, trained, idle])
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert alone.clients == together.clients


def test_tensors_keep_their_type_and_means_of_half_precision_are_taken_in_double():
    mean, start = RunningMean(), {"a.weight": torch.zeros(2, dtype=torch.bfloat16)}
    for _ in range(1000):
        mean.add({"a.weight": torch.ones(2, dtype=torch.bfloat16)}, 1)
    assert torch.equal(mean.over(start)["a.weight"], torch.ones(2, dtype=torch.bfloat16))
