"""Recompute: a dimension of every plan, whatever the method; what it means for gradients, for bytes, and who gives way."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedact
from fedact.compression import make_method
from fedact.config.plan import Plan
from fedact.nn.surgery import assign, methods_of, recompute_of, restore
from fedact.planner.peak_prediction import PeakPrediction
from fedact.planner.problem import make_problem
from fedact.planner.step_memory import measure_step
from tests.support.laws import relative_error
from tests.support.networks import measure
from tests.support.portions import rotated

METHODS = [
    "exact", "vanilla", "checkpoint", "hosvd:variance=0.8", "hosvd:ranks=2x3x4x4,bits=8", "tucker:ranks=2x3x4x4",
    "svd:variance=0.8", "channel_svd:variance=0.8", "asi:ranks=2x3x4x4", "lance:ranks=3x4x4", "gradient_filter",
    "quantize:bits=4", "transform:bits=1", "transform:variance=0.9",
]  # fmt: skip
EXACT = ("exact", "vanilla", "checkpoint")
LAYERS = 6
OF_FIXED_SHAPES = [
    "exact", "hosvd:ranks=2x3x4x4,bits=8", "tucker:ranks=2x3x4x4", "asi:ranks=2x3x4x4", "gradient_filter", "quantize:bits=4"
]  # fmt: skip
"""What these work with follows from shapes alone."""


def block(wide: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
        nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
        nn.Conv2d(wide, 4, 1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip


def blocks(head: bool = True) -> nn.Module:
    """Three narrow-wide-narrow blocks: much is made again from little."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)] if head else [nn.Flatten()]
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), block(24), block(24, stride=2), block(16), nn.Conv2d(4, 8, 1), nn.ReLU(), *last
        ).eval()  # fmt: skip


def data(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(size) % 4


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    F.cross_entropy(model(x), y).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def installed(method: str, recompute: int) -> nn.Module:
    return fedact.compress(blocks(head="ranks" not in method), method, LAYERS, recompute=recompute)


@pytest.mark.parametrize("method", METHODS)
def test_stored_bytes_never_grow_with_recompute_and_exact_gradients_stay_autograds(method):
    x, y = data()
    theirs, held = step(installed("vanilla", 0), x, y), []
    for recompute in range(4):
        model = installed(method, recompute)
        held.append(measure(model, lambda: step(model, x, y), (x, y)).saved_bytes)  # noqa: B023
        if method in EXACT:
            ours = step(model, x, y)
            assert all(relative_error(ours[name], theirs[name]) < 1e-5 for name in theirs)
        assert recompute_of(model) == {"vanilla": 0, "checkpoint": 2}.get(method, recompute)
    assert held == sorted(held, reverse=True)
    assert (held[3] < held[0]) == (method not in ("vanilla", "checkpoint"))


@pytest.mark.parametrize("recompute", [1, 2, 3])
def test_what_is_made_again_is_working_memory_and_nothing_else_is_kept_for_it(recompute):
    x, y = data()
    model = installed("exact", recompute)
    memory = measure(model, lambda: step(model, x, y), (x, y))
    assert memory.hidden_bytes == 0
    wide = 4 * 4 * 24 * 12 * 12
    assert memory.by_layer.get("2.3", 0) == 0
    assert memory.saved_bytes < wide < memory.peak_bytes


@rotated(2, method=OF_FIXED_SHAPES, recompute=[1, 2, 3], size=[1, 4])
def test_predicted_peaks_are_the_measured_ones(method, recompute, size):
    given = {"budget": None, "scope": "peak", "loss": F.cross_entropy}
    problem = make_problem(blocks(head="ranks" not in method), data(), method=make_method(method), **given)
    inputs = problem.inputs(problem.trained(LAYERS), 1)
    methods = assign(problem.model, inputs, make_method(method).recomputing(recompute))
    peaks = PeakPrediction(problem)
    for prefix in peaks.schedules(methods, size)[:2]:
        measured = measure_step(problem, methods, size, prefix).peak_bytes
        assert peaks.peak_bytes(methods, size, prefix) == pytest.approx(measured, rel=0.001), prefix


@pytest.mark.parametrize("scope", ["saved", "peak"])
@rotated(4, method=["auto", "hosvd", *(each for each in METHODS if "ranks" not in each)], budget=[3_000, 12_000, 40_000])
def test_a_plans_bytes_are_those_of_its_steps(method, budget, scope):
    x, y = data()
    plan = fedact.make_plan(blocks(), budget, (x, y), method, LAYERS, scope)
    if plan.status == "skipped":
        return
    read = Plan.from_json(plan.to_json())
    model = fedact.apply(blocks(), read)
    assert recompute_of(model) == plan.recompute
    assert sum(p.nbytes for p in model.parameters() if p.requires_grad) == plan.gradient_bytes
    assert all("derive" not in kept.method for kept in plan.kept)
    part = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    memory = measure(model, lambda: F.cross_entropy(model(part[0]), part[1]).backward(), part)
    saved, peak = plan.saved_bytes, plan.peak_bytes
    assert memory.saved_bytes <= saved
    if scope == "peak":
        assert memory.peak_bytes <= peak <= budget
    if plan.fixed:
        assert memory.saved_bytes == saved


def bytes_of(method: str, recompute: int, size: int = 1) -> int:
    x, y = data()
    return fedact.make_plan(blocks(), None, (x[:size].clone(), y[:size]), method, LAYERS, recompute=recompute).saved_bytes


def test_recompute_gives_way_after_the_micro_batch_and_before_the_layers():
    one, again = bytes_of("exact", 0), bytes_of("exact", 3)
    assert again < one
    given = {"method": "exact", "layers": "auto", "scope": "saved", "most_layers": LAYERS}
    fits = fedact.make_plan(blocks(), one, data(), **given)
    assert (fits.layers, fits.micro_batch, fits.recompute) == (LAYERS, 1, 0)
    for budget in (again, one - 1):
        short = fedact.make_plan(blocks(), budget, data(), **given)
        assert (short.layers, short.micro_batch, short.recompute) == (LAYERS, min(4, budget // again), 3)
        assert "recompute 0 to 3" in short.reason
    told = fedact.make_plan(blocks(), one - 1, data(), **given, recompute=0)
    assert told.layers < LAYERS
    assert told.recompute == 0


@pytest.mark.parametrize(
    ("method", "recompute", "expected"),
    [
        ("exact", 0, 0), ("exact", 2, 2), ("exact:derive=1", 2, 1), ("exact:derive=0", 2, 0), ("exact", "auto", 0),
        ("vanilla", 2, 0), ("checkpoint", 0, 2), ("auto", 2, 0), ("hosvd:variance=0.8", 3, 3),
    ],
)  # fmt: skip
def test_a_given_recompute_stays_and_a_methods_own_goes_before_it(method, recompute, expected):
    plan = fedact.make_plan(blocks(), None if method != "auto" else "1MB", data(), method, LAYERS, recompute=recompute)
    assert plan.recompute == (2 if method == "auto" else expected)
    assert plan.method == method


def test_nothing_is_made_again_where_the_head_alone_is_trained():
    assert fedact.make_plan(blocks(), None, data(), "exact", 0, recompute=3).recompute == 0


@pytest.mark.parametrize("method", ["exact", "hosvd:variance=0.8", "quantize:bits=4", "transform:bits=1"])
def test_compress_takes_it_as_the_methods_own_name_does(method):
    x, y = data()
    ours, named = (
        step(fedact.compress(blocks(), text, LAYERS, recompute=given), x, y)
        for text, given in ((method, 2), (f"{method},derive=2" if ":" in method else f"{method}:derive=2", 0))
    )
    assert all(torch.equal(ours[name], named[name]) for name in named)


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, None])
def test_what_is_no_number_of_convolutions_is_refused(value):
    with pytest.raises(fedact.ConfigError, match="recompute is a whole number from 0"):
        fedact.compress(blocks(), "exact", 2, recompute=value)
    with pytest.raises(fedact.ConfigError, match="recompute is a whole number from 0 or auto"):
        fedact.make_plan(blocks(), None, data(), "exact", 2, recompute=value)


@pytest.mark.parametrize(
    ("written", "recompute"),
    [("exact:derive=3", 3), ("transform:bits=0.5", 2), ("transform:bits=0.5,derive=0", 0), ("hosvd:variance=0.8", 0)],
)
def test_a_plan_from_when_recompute_stood_in_methods_names_is_carried_out_as_then(written, recompute):
    plan = fedact.make_plan(blocks(), None, data(), "exact", LAYERS)
    row = json.loads(plan.to_json())
    del row["recompute"]
    row["kept"] = [{**kept, "method": written} for kept in row["kept"]]
    old = Plan.from_json(json.dumps(row))
    assert old.recompute == recompute
    assert {method.recompute for method in methods_of(blocks(), old).values()} == {recompute}
    assert {method.codec for method in methods_of(blocks(), old).values()} == {make_method(written).codec}


def test_restore_leaves_nothing_to_make_again():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recompute_of(restore(installed("exact", 2))) == 0
    assert replace(fedact.make_plan(blocks(), None, data(), "exact", 1), recompute=0).recompute == 0
