"""Below what the fast engine needs, a plan of all methods trains in streams, and peaks as it says to the byte."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import make_method
from fedact.data import Examples, Loader, Preprocessing
from fedact.training.frozen_prefix import frozen_prefix
from fedact.training.local import train_locally
from fedact.training.recipe import Recipe
from tests.support.inverted_residuals import InvertedResidual, batch, gradients, network, plain_gradients

LAYERS = 6


def wide():
    torch.manual_seed(0)
    return network(InvertedResidual(8, 64, 8), InvertedResidual(8, 64, 8), stem=8, out=8), batch(4, 32, torch.float32)


def peak_bytes(model, x, y, layers, method="exact"):
    """Return the ledger's peak of one example's step in the fast engine."""
    model, x, y = fedact.compress(copy.deepcopy(model), method, layers=layers), x[:1].clone(), y[:1].clone()
    with fedact.measure_memory(model, (x, y)) as memory:
        F.cross_entropy(model(x), y).backward()
    return memory.peak_bytes


@pytest.mark.parametrize("layers", [LAYERS, 2])
def test_a_budget_below_the_fast_engine_is_trained_in_streams(layers):
    model, (x, y) = wide()
    budget = peak_bytes(model, x, y, layers, "transform:bits=0.1") // 2
    plan = fedact.make_plan(model, budget, (x, y), "auto", layers, "peak")
    assert (plan.status, plan.layers) == ("ok", layers)
    assert plan.room_bytes
    assert plan.peak_bytes <= budget
    assert "in streams" in plan.reason
    assert fedact.Plan.from_json(plan.to_json()) == plan
    applied = fedact.apply(copy.deepcopy(model), plan)
    some, labels = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    with fedact.measure_memory(applied, (some, labels)) as memory:
        F.cross_entropy(applied(some), labels).backward()
    assert memory.peak_bytes == plan.peak_bytes
    applied.zero_grad()
    found, exact = gradients(applied, x, y), plain_gradients(copy.deepcopy(model), x, y, layers)
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_a_whole_batch_that_fits_the_fast_engine_is_not_in_streams():
    model, example = wide()
    plan = fedact.make_plan(model, "10MB", example, "auto", LAYERS, "peak")
    assert (plan.status, plan.room_bytes, plan.micro_batch) == ("ok", None, 4)


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_more_examples_at_once_in_streams_are_preferred_to_one_in_the_fast_engine(method):
    model, (x, y) = wide()
    plan = fedact.make_plan(model, peak_bytes(model, x, y, LAYERS), (x, y), method, LAYERS, "peak")
    assert (plan.status, plan.layers, plan.micro_batch) == ("ok", LAYERS, 4)
    assert plan.room_bytes


@pytest.mark.parametrize(("method", "share"), [("auto", 3), ("exact", 4), ("quantize:bits=8", 3)])
def test_what_a_budget_leaves_is_given_to_the_room(method, share):
    model, (x, y) = wide()
    budget = peak_bytes(model, x, y, LAYERS) // share
    plan = fedact.make_plan(model, budget, (x, y), method, LAYERS, "peak")
    some, labels = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    fitting = []
    for room in range(plan.room_bytes, 2 * plan.room_bytes, plan.room_bytes // 50):
        applied = fedact.apply(copy.deepcopy(model), replace(plan, room_bytes=room))
        with fedact.measure_memory(applied, (some, labels)) as memory:
            F.cross_entropy(applied(some), labels).backward()
        fitting += [memory.peak_bytes] * (memory.peak_bytes <= budget)
    # What fits in more room runs in as many groups.
    assert len(set(fitting)) == 1
    assert fitting[0] <= plan.peak_bytes <= budget


@pytest.mark.parametrize("share", [3, 5])
def test_a_free_method_keeps_no_narrow_input_in_more_bytes_than_its_own(share):
    model, (x, y) = wide()
    plan = fedact.make_plan(model, peak_bytes(model, x, y, LAYERS) // share, (x[:2], y[:2]), "hosvd", LAYERS, "peak")
    assert plan.room_bytes
    kept = [each for each in plan.kept if each.cap_bytes]
    assert any(each.method.startswith("hosvd") for each in kept)
    for each in kept:
        own = 4 * math.prod(each.shape)
        assert each.cap_bytes == own if each.method == "exact" else each.cap_bytes < own


def test_the_most_bits_of_transform_are_as_good_as_exact_behind_many_blocks():
    """Masks are made again from what is kept: in 16 blocks their errors add up, of 8 bits to 0.02 in a layer."""
    torch.manual_seed(0)
    model, (x, y) = network(*[InvertedResidual(8, 24, 8) for _ in range(16)], stem=8, out=8), batch(4, 8, torch.float32)
    bits = max(make_method("transform").levels(x))
    exact = plain_gradients(copy.deepcopy(model), x, y, 48)
    found = gradients(fedact.compress(copy.deepcopy(model), f"transform:bits={bits:g}", layers=48, room=4000), x, y)
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() ** 2 <= 0.005 * gradient.norm() ** 2


def test_less_than_streams_need_is_skipped():
    model, example = wide()
    assert fedact.make_plan(model, 1000, example, "auto", LAYERS, "peak").status == "skipped"


@pytest.mark.parametrize("share", [2, 4])
def test_the_head_alone_is_trained_in_streams_or_tiles_where_whole_maps_cannot_run_forward(share):
    model, (x, y) = wide()
    budget = peak_bytes(model, x, y, 0) // share
    plan = fedact.make_plan(model, budget, (x, y), "auto", 0, "peak")
    assert (plan.status, plan.layers) == ("head-only", 0)
    assert plan.room_bytes or plan.tiles > 1
    assert ("tiles" in plan.reason) == (plan.tiles > 1)
    applied = fedact.apply(model, plan)
    some, labels = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    with fedact.measure_memory(applied, (some, labels)) as memory:
        F.cross_entropy(applied(some), labels).backward()
    assert memory.peak_bytes == plan.peak_bytes <= budget


@pytest.mark.parametrize("layers", [0, 1, 3, LAYERS])
@pytest.mark.parametrize("share", [2, 3])
def test_a_client_that_reads_its_frozen_prefix_from_a_cache_has_the_plans_peak(layers, share):
    (model, (x, y)), random = wide(), np.random.default_rng(0)
    images = Examples(random.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), random.integers(0, 3, 12))
    loader = Loader(images, Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3))
    budget = peak_bytes(model, x, y, layers) // share
    plan = fedact.make_plan(model, budget, loader(np.arange(4)), "auto", layers, "peak")
    assert plan.room_bytes or plan.tiles > 1
    applied = fedact.apply(model, plan)
    batches = frozen_prefix(applied, plan, loader, len(images)).from_memory(loader, steady=True)
    recipe = Recipe(batch_size=4, local_epochs=1, lr=0.01, momentum=0.9, weight_decay=0.0, clip_norm=1.0)
    trained = train_locally(applied, batches, len(images), plan, recipe, np.random.default_rng(0))
    assert trained.peak_bytes == plan.peak_bytes
