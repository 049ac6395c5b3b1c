"""Predicted peaks are those that the ledger measures."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedact.compression import make_method
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import WHOLE, PrefixSchedule, make_problem
from fedact.planner.stand_in import structure_of
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import layers_with_input
from tests.support.inverted_residuals import small
from tests.support.networks import Residual, normed
from tests.support.planned import Net

NETWORKS = {"net": Net, "normed": normed, "residual": Residual}
EXACT = ["exact", "exact:derive=2", "vanilla", "checkpoint", "hosvd:ranks=2x3x4x4", "svd:ranks=2"]
NEAR = ["quantize:bits=4", "gradient_filter", "transform:bits=2", "transform:bits=0.3,derive=0", "asi:ranks=2x3x4x4"]


def prediction(network, method, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = NETWORKS[network]().train(), (torch.randn(8, 3, 20, 20), torch.arange(8) % 4)
    given = {"budget": None, "scope": "peak", "loss": F.cross_entropy}
    problem = make_problem(model, example, method=make_method(method), **given)
    inputs = problem.inputs(problem.trained(layers), 1)
    methods = {name: make_method(method).for_dimensions(x.dim()) for name, x in inputs.items()}
    return problem, methods, PeakPrediction(problem)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", [*EXACT, *NEAR])
def test_a_predicted_peak_is_the_measured_one(network, method):
    for layers in (0, 1, 3) if method in EXACT else (3,):
        problem, methods, peaks = prediction(network, method, layers)
        for size, prefix in (
            (1, WHOLE),
            (3, PrefixSchedule(2)),
            (8, WHOLE),
            (8, PrefixSchedule(4, 2)),
            (3, PrefixSchedule(0, 3)),
        ):
            prefix = prefix if peaks._prefix(structure_of(methods)) else WHOLE
            measured = measure_step(problem, methods, size, prefix).peak_bytes
            # Of the others, what they work with is measured on fewer elements.
            tolerance = 0.0 if method in EXACT else 0.05
            assert peaks.peak_bytes(methods, size, prefix) == pytest.approx(measured, rel=tolerance), (layers, size, prefix)


@pytest.mark.parametrize("room", [None, 900, 30_000])
@pytest.mark.parametrize("layers", [0, 1, 4])
def test_the_peak_of_every_way_to_run_a_prefix_is_predicted_to_the_byte(room, layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, example = small(), (torch.randn(6, 3, 31, 30), torch.arange(6) % 3)
    given = {"budget": None, "scope": "peak", "loss": F.cross_entropy, "room": room}
    problem = make_problem(model, example, method="auto", **given)
    peaks, methods = PeakPrediction(problem), dict.fromkeys(layers_with_input(problem, layers), make_method("exact"))
    kinds = set()
    for size in (1, 2, 6):
        # Each takes less than the one before.
        schedules = peaks.schedules(methods, size)
        assert peaks.least_schedule(methods, size) in schedules
        for prefix in [*schedules[:2], schedules[-1]]:
            measured = measure_step(problem, methods, size, prefix).peak_bytes
            assert peaks.peak_bytes(methods, size, prefix) == measured, (size, prefix)
            kinds.add((prefix.chunk > 0, prefix.tiles > 1))
    assert len(kinds) > 2


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_size_is_too_large_only_where_its_peak_is(network, layers):
    problem, methods, peaks = prediction(network, "hosvd:ranks=1x1x1x1", layers)
    derive = next(iter(methods.values())).recompute
    for size in (1, 3, 8):
        measured = measure_step(problem, methods, size, peaks.least_schedule(methods, size)).peak_bytes
        for budget, too_large in ((measured, False), (measured // 4, True)):
            bounded = PeakPrediction(replace(problem, budget=budget))
            assert bounded.is_too_large(methods, derive, size) == too_large, (size, budget)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["exact", "hosvd:ranks=1x1x1x1"])
def test_every_storage_of_a_step_grows_by_the_same_with_every_example(network, method):
    for layers in (1, 3):
        _, methods, peaks = prediction(network, method, layers)
        one, two, five = (peaks._levels(structure_of(methods), size, False) for size in (1, 2, 5))
        assert one.least_bytes_of(5, two) == five.least_bytes


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", [*EXACT, *NEAR])
def test_what_methods_work_with_is_left_out_only_where_it_makes_no_difference(network, method):
    for layers in (1, 3):
        _, methods, peaks = prediction(network, method, layers)
        for size in (1, 5):
            step = peaks._levels(structure_of(methods), size, False)
            everything = step.levels.most([step._size(slot, methods, peaks.working) for slot in step.slots])
            assert step.peak_bytes(methods, peaks.working) == everything
