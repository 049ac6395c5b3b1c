"""A plain command with a large fleet has enough examples where they are made to order; where not, it says what to change."""

import numpy as np
import pytest

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.data import DATASETS, SEGMENTATION_DATASETS, Request
from fedact.training.experiment import read_data

SIDES = {"classification": 32, "segmentation": 16}


def parts(side=None, **settings):
    """Return the server's examples and the clients' parts of a config."""
    config = make_config({"dataset": "synthetic", **settings})
    _, dealt = read_data(config, side or SIDES[config.task])
    return dealt.server, dealt.parts.whole.sizes


@pytest.mark.parametrize("task", SIDES)
@pytest.mark.parametrize("weights", ["pretrain", "none"])
@pytest.mark.parametrize("rule", ["dirichlet:alpha=0.3", "shards:per_client=12", "iid:min_partition_size=14"])
def test_what_is_made_to_order_is_enough_for_every_client(task, weights, rule):
    server, sizes = parts(task=task, weights=weights, partition=rule, clients=130)
    assert len(sizes) == 130
    assert sizes.min() >= {"d": 10, "s": 12, "i": 14}[rule[0]]
    # Pretraining takes as long as for twenty clients.
    assert len(server) <= {"classification": 1000, "segmentation": 200}[task]


def test_a_large_calibration_set_is_made_too():
    server, sizes = parts(weights="none", calibration=3000, clients=4)
    assert len(server) == 3000
    assert sizes.min() >= 10


def test_the_sizes_of_twenty_clients_stay():
    for task, table, examples in (("classification", DATASETS, 2000), ("segmentation", SEGMENTATION_DATASETS, 400)):
        server, sizes = parts(task=task)
        assert len(server) == sizes.sum() == examples // 2
        request = Request(None, None, None, np.random.default_rng(0), side=16)
        assert len(table["synthetic"](request).train) == examples


def test_max_examples_is_kept_and_the_refusal_names_what_to_change():
    with pytest.raises(ConfigError) as caught:
        parts(max_examples=2000, clients=200)
    said = str(caught.value)
    assert "200 clients need at least 10 examples each (min_partition_size), but there are 1000" in said
    assert all(way in said for way in ("at most 100 clients (--clients)", "--max-examples", "min_partition_size=5"))
    _, sizes = parts(max_examples=2000, clients=100)
    assert sizes.tolist() == [10] * 100
    _, sizes = parts(max_examples=2000, clients=200, partition="dirichlet:min_partition_size=5")
    assert sizes.min() == 5


def test_the_digits_name_what_to_change():
    with pytest.raises(ConfigError, match=r"there are 674: at most 67 clients \(--clients\), or more examples .*synthetic"):
        parts(dataset="digits", clients=1000, side=8)
