"""The first command does what its name says: without settings, ``hosvd`` keeps factors."""

import re

import pytest

from fedact.compression import make_method
from fedact.config.loading import make_config
from fedact.federation.planning import make_plans
from fedact.reports.saved_tensors import saved_tensors
from fedact.training.workspace import prepare


@pytest.mark.parametrize("layers", [8, pytest.param(32, marks=pytest.mark.exhaustive)])
def test_the_main_jobs_plan_keeps_factors_in_large_micro_batches(layers):
    """At random weights, to spare the pretraining: of a trained network's activations less is kept."""
    workspace = prepare(
        make_config({"clients": 20, "budget": "512KB", "scope": "saved", "layers": layers, "weights": "none"})
    )
    (plan,) = make_plans(workspace, "hosvd").values()
    images = [kept for kept in plan.kept if len(kept.shape) == 4]
    assert len(images) == layers
    assert all(make_method(kept.method).ranks for kept in images)
    assert plan.saved_bytes <= 512_000
    assert plan.micro_batch >= 8
    assert plan.error_per_layer <= 0.06
    words = saved_tensors(kept.method for kept in plan.kept)
    assert re.match(rf"({layers}|{layers + 1}) of {layers + 1} as factors by hosvd \(ranks \d+ to \d+", words)
