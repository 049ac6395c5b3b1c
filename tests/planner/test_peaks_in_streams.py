"""In streams, for any method: predicted peaks are those that the ledger measures, and caps are those of what is kept."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedact.compression import make_method
from fedact.compression.exact import Exact
from fedact.nn.recompute import rematerialized_inputs
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import make_problem
from fedact.planner.step_memory import measure_step
from fedact.planner.step_structure import StepStructure, layers_with_input
from tests.support.inverted_residuals import InvertedResidual, batch, network

EXACT = ["exact", "exact:derive=3", "hosvd:ranks=2x3x4x4", "svd:ranks=2", "gradient_filter", "quantize:bits=8"]
NEAR = ["asi:ranks=2x3x4x4", "transform:bits=2", "quantize:bits=4,derive=3"]
ROOMS = 3000, 20_000


def problem(method, room, activation="relu6"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle, last = InvertedResidual(10, 48, 10, activation=activation), InvertedResidual(10, 48, 12, stride=2)
        model = network(InvertedResidual(8, 0, 10), middle, last, stem=8, out=12)
        example = batch(4, 24, torch.float32)
    given = {"budget": None, "scope": "peak", "loss": F.cross_entropy}
    return replace(make_problem(model, example, method=make_method(method), **given), room=room)


def methods_at(asked, depth):
    inputs = asked.inputs(asked.trained(depth), 1)
    return {name: asked.method.for_dimensions(inputs[name].dim()) for name in layers_with_input(asked, depth)}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("method", [*EXACT, *NEAR])
def test_a_predicted_peak_is_the_measured_one(method, room):
    asked = problem(method, room)
    # The last block from its depthwise convolution on, or all blocks with the stem in the first.
    for depth, size in ((2, 1), (9, 3)):
        methods = methods_at(asked, depth)
        measured = measure_step(asked, methods, size).peak_bytes
        # Of the others, what they work with is measured on fewer elements.
        tolerance = 0.0 if method in EXACT else 0.05
        assert PeakPrediction(asked).peak_bytes(methods, size) == pytest.approx(measured, rel=tolerance), (depth, size)


def test_a_block_that_decodes_by_channels_goes_with_one_that_keeps_its_input():
    asked = problem("quantize:bits=8", ROOMS[0])
    methods = methods_at(asked, 6)
    methods |= {name: Exact() for name in methods if name.startswith("3.")}
    measured = measure_step(asked, methods, 1).peak_bytes
    assert PeakPrediction(asked).peak_bytes(methods, 1) == measured


@pytest.mark.parametrize("room", ROOMS)
def test_a_size_is_too_large_only_where_its_peak_is(room):
    asked = problem("svd:ranks=2", room)
    methods = methods_at(asked, 6)
    for size in (1, 4):
        measured = measure_step(asked, methods, size).peak_bytes
        assert not PeakPrediction(replace(asked, budget=measured)).rules_out(methods, size)
        assert PeakPrediction(replace(asked, budget=measured // 8)).rules_out(methods, size)


@pytest.mark.parametrize("activation", ["relu6", "hardswish"])
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 8])
def test_every_saved_input_and_no_other_is_stored(depth, activation):
    asked = problem("quantize:bits=8", ROOMS[0], activation)
    methods, structure = methods_at(asked, depth), StepStructure(asked, 0, depth)
    saved = structure.saved_inputs(depth)
    assert {name for each in saved for name in each.layers} == methods.keys()
    masks = structure.mask_bytes(depth)
    codec, keys = methods[asked.trained(depth)[0]], {each.key for each in saved} - structure.images
    inputs = [(structure.inputs[key], masks[key]) for key in keys]
    stored = sum(codec.predicted_bytes(x) + codec.predicted_state_bytes(x) + mask for x, mask in inputs)
    assert measure_step(asked, methods, 1).saved_bytes == stored + structure.overhead_bytes(depth, 1)
    sources = rematerialized_inputs(asked.model, methods, asked.room)
    assert {sources.get(name, name) for name in methods} - {""} == keys


def test_the_images_of_the_first_block_are_kept_as_they_are():
    asked = problem("quantize:bits=8", ROOMS[0])
    sources = rematerialized_inputs(asked.model, methods_at(asked, 9), asked.room)
    assert [sources[name] for name in ("0.0", "1.conv.0", "1.conv.3")] == ["", "", ""]
