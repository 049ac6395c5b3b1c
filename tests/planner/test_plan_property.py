"""Whatever is asked for, no step of real training exceeds the budget, and a plan's bytes are those that are measured."""

import copy
import random
from dataclasses import replace
from math import prod

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import METHODS, make_method
from fedact.config.plan import Plan
from fedact.nn.surgery import (
    convolutions,
    methods_of,
    rematerialized_inputs,
    trained_parameters,
)
from fedact.planner.allocation import NEGLIGIBLE
from tests.support.asked import MODELS, Case, check_bytes, trained
from tests.support.planned import in_scope

FAST, ALL, QUICK_MODELS = 20, 100, ["net", "net", "normed", "residual"]
FREE = [
    "hosvd", "transform", "division", "topk", "random_projection",
    "hosvd:bits=8", "hosvd:batch=false", "hosvd:truncation=sequential",
]  # fmt: skip
"""Methods without the setting that a budget chooses."""
ASKED = [
    *METHODS, "auto", "auto", "transform",
    "hosvd:variance=0.8", "hosvd:bits=8", "hosvd:variance=0.8,bits=4", "hosvd:truncation=sequential", "hosvd:batch=false",
    "hosvd:variance=0.8,truncation=sequential,mean=true", "tucker:variance=0.7", "svd:variance=0.8", "asi:variance=0.8",
    "channel_svd:variance=0.6", "lance:variance=0.8", "gradient_filter:patch=4", "quantize:bits=2", "exact:derive=2",
    "transform:variance=0.9", "transform:bits=0.5,derive=0", "quantize:bits=4,derive=2",
]  # fmt: skip
SMALLEST = {
    "hosvd": {"ranks": (1,) * 4}, "transform": {"bits": 0.03}, "division": {"bits": 2}, "topk": {"share": 0.01},
    "random_projection": {"ratio": 0.05},
}  # fmt: skip
"""The least that a budget may choose of a method's settings."""
LEAST, MOST, TIGHT = 8_000, 64_000_000, 150_000


SEEDS = [*range(FAST), *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(FAST, ALL))]


def case(seed: int) -> Case:
    """Return one of the random cases: every method comes in turn, and every other budget is one that binds small models."""
    draw = random.Random(seed)
    model = draw.choice(QUICK_MODELS if seed < FAST else [*3 * QUICK_MODELS, *MODELS])
    budget = int(LEAST * ((MOST if seed % 4 == 3 else TIGHT) / LEAST) ** draw.random())
    return Case(
        seed, model, draw.randint(1, 16), draw.choice(MODELS[model][1]), budget, ASKED[seed % len(ASKED)],
        draw.choice(["saved", "peak"]), draw.choice(["auto", "auto", 0, 1, 2, 3, 3]), draw.choice([True, False]),
    )  # fmt: skip


def check_skipped(asked: Case, plan: Plan) -> None:
    """The least that is told is really the least with which anything is trained."""
    assert plan.least_bytes > asked.budget
    assert f"needs {plan.least_bytes:,} {asked.scope} bytes" in plan.reason
    enough = asked.plan(budget=plan.least_bytes)
    assert enough.status != "skipped"
    assert in_scope(trained(asked, enough), asked.scope) <= plan.least_bytes
    assert asked.plan(budget=plan.least_bytes - 1).status == "skipped"


def check_answers(asked: Case, plan: Plan) -> None:
    """What was asked for is what is done, and what gave way is said."""
    assert (plan.status, plan.layers == 0) in {("ok", False), ("head-only", True)}
    assert 1 <= plan.micro_batch <= plan.batch_size == asked.batch
    assert asked.layers in ("auto", plan.layers) or plan.layers == 0
    gave_way = plan.micro_batch < asked.batch or asked.layers not in ("auto", plan.layers)
    assert not gave_way or plan.reason
    if asked.method == "auto" and plan.vanilla_saved_bytes <= asked.budget and asked.scope == "saved":
        assert plan.micro_batch == asked.batch
        assert all(make_method(kept.method).traits.keeps_input for kept in plan.kept)
    if asked.method != "auto":
        check_kind(asked, plan)


def check_kind(asked: Case, plan: Plan) -> None:
    """No method turns into another lossy one; without settings it is itself before every convolution where it is smaller.

    Raw images count nothing, and neither does what is made again from them: there nothing is smaller than exact.
    """
    images, asked_kind = (plan.micro_batch, 3, asked.resolution, asked.resolution), type(make_method(asked.method))
    # The first layer's bytes, the images', are said at the first layer whose input is made again from its.
    model = asked.network()
    sources = rematerialized_inputs(model, methods_of(model, plan))
    for kept in plan.kept:
        method = make_method(kept.method)
        assert type(method) in (asked_kind, METHODS["exact"])
        from_images = kept.shape == images or sources.get(kept.name) == convolutions(model)[0]
        stored = kept.cap_bytes and len(kept.shape) == 4 and not from_images
        if stored and method.traits.keeps_input and not asked_kind.traits.keeps_input:
            assert smallest_bytes(asked_kind, kept.shape) >= 4 * prod(kept.shape)


def smallest_bytes(kind: type, shape: tuple[int, ...]) -> int:
    """Return the fewest bytes for which a method stores a tensor: one component in each mode, or hardly any bits."""
    name = next(name for name, entry in METHODS.items() if entry is kind)
    return kind(**SMALLEST[name]).predicted_bytes(shape)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_step_exceeds_the_budget_and_the_plans_bytes_are_those_measured(seed):
    asked = case(seed)
    plan = asked.plan()
    assert Plan.from_json(plan.to_json()) == plan
    if plan.status == "skipped":
        check_skipped(asked, plan)
    else:
        check_answers(asked, plan)
        check_bytes(asked, plan)


def test_what_is_made_again_from_the_images_is_exact_under_any_method():
    asked = case(46)
    plan = asked.plan(recompute=2)
    assert (plan.recompute, plan.expected_error) == (2, 0.0)
    check_answers(asked, plan)
    check_bytes(asked, plan)


@pytest.mark.parametrize("method", FREE)
@pytest.mark.parametrize("model", ["normed", "residual"])
def test_a_method_without_settings_is_itself_under_any_budget(model, method):
    asked = Case(1, model, 4, 16, MOST, method, "saved", 3, False)
    least = asked.plan(budget=1).least_bytes
    for budget in (least, 3 * least, 10 * least, MOST):
        plan = asked.plan(budget=budget)
        check_answers(asked, plan)
        check_bytes(replace(asked, budget=budget), plan)
    name = method.partition(":")[0]
    assert name == "transform" or any(kept.method.startswith(f"{name}:") for kept in plan.kept)
    assert plan.error_per_layer <= NEGLIGIBLE


@pytest.mark.parametrize("model", ["normed", "residual", "mobilenet_v3"])
def test_a_budget_larger_than_vanilla_needs_gives_vanillas_gradient(model):
    asked = Case(1, model, 4, MODELS[model][1][2], MOST, "auto", "saved", 3, False)
    plan = asked.plan(budget=asked.plan(budget=None, method="vanilla").saved_bytes)
    x, y = asked.data(4, 1)
    models = [fedact.apply(asked.network(), plan), fedact.compress(asked.network(), "vanilla", layers=3)]
    gradients = []
    for each in models:
        F.cross_entropy(each(x), y).backward()
        gradients.append({name: copy.copy(p.grad) for name, p in trained_parameters(each).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
