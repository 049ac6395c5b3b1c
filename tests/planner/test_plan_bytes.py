"""Plans: the bytes are true, and no real step exceeds them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenet_v2

import fedact
from fedact.config.plan import Plan
from fedact.nn.surgery import install, methods_of, trained_parameters
from tests.support.planned import Net, batch, in_scope, net, plan_for, step
from tests.support.portions import examples

# The bytes -----------------------------------------------------------------------------------------------------------------

METHODS = [
    "vanilla", "exact", "hosvd", "hosvd:variance=0.8", "hosvd:ranks=4x3x3x2", "hosvd:bits=8", "hosvd:variance=0.8,bits=4",
    "hosvd:truncation=sequential", "hosvd:variance=0.8,truncation=sequential,mean=true", "hosvd:batch=false", "tucker",
    "svd:variance=0.8", "channel_svd:variance=0.8", "asi:variance=0.8", "lance:variance=0.8", "gradient_filter",
    "quantize:bits=4", "checkpoint", "exact:derive=2", "transform", "transform:variance=0.9", "transform:bits=0.5,derive=0",
    "division", "topk", "random_projection",
]  # fmt: skip
budgets = st.integers(11, 21).flatmap(lambda bits: st.integers(2**bits, min(2 ** (bits + 1), 4_000_000)))
scopes, layers_asked = st.sampled_from(["saved", "peak"]), st.sampled_from(["auto", 1, 3])
problems = st.tuples(budgets, st.integers(1, 12), st.sampled_from(METHODS), scopes, layers_asked)


def make(problem, rank=None) -> tuple[Plan, nn.Module]:
    budget, size, method, scope, layers = problem
    if method.startswith("hosvd:ranks"):
        return _without_head(problem, rank)
    plan = fedact.make_plan(net(), budget, batch(size, rank=rank), method, layers, scope)
    return plan, fedact.apply(net(), Plan.from_json(plan.to_json()))


def _without_head(problem, rank) -> tuple[Plan, nn.Module]:
    """Fixed ranks are for four dimensions, so the head must not be trained: here a 1x1 convolution is in its place."""
    budget, size, method, scope, layers = problem
    plan = fedact.make_plan(convolutional_net(), budget, batch(size, rank=rank), method, layers, scope)
    return plan, fedact.apply(convolutional_net(), plan)


def convolutional_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ).train()  # fmt: skip


@examples(30)
@given(problems, st.data())
def test_no_real_step_exceeds_the_plan_or_the_budget(problem, data):
    budget, size, method, scope, layers = problem
    if method.startswith("hosvd:ranks"):
        problem = (max(budget, 60_000), size, method, scope, layers)
    plan, model = make(problem, rank=data.draw(st.sampled_from([None, 1, 3]), label="rank of the server's data"))
    if plan.status == "skipped":
        assert plan.least_bytes > budget
        return
    part = data.draw(st.integers(1, plan.micro_batch), label="micro-batch")
    x, y = batch(part, seed=data.draw(st.integers(1, 9), label="seed"))
    first, second = step(model, x, y), step(model, x, y)
    limit = plan.saved_bytes if scope == "saved" else plan.peak_bytes
    assert limit <= problem[0]
    assert max(in_scope(first, scope), in_scope(second, scope)) <= limit
    assert max(first.saved_bytes, second.saved_bytes) <= plan.saved_bytes
    assert max(first.hidden_bytes, second.hidden_bytes) == 0


@examples(20)
@given(problems, st.integers(1, 9))
def test_a_full_micro_batch_under_fixed_methods_holds_exactly_what_the_plan_says(problem, seed):
    if problem[2].startswith("hosvd:ranks"):
        problem = (max(problem[0], 60_000), *problem[1:])
    plan, model = make(problem)
    if plan.status == "skipped" or not plan.fixed:
        return
    memory = step(model, *batch(plan.micro_batch, seed))
    expected = (plan.saved_bytes, plan.state_bytes, plan.paper_bytes)
    assert (memory.saved_bytes, memory.state_bytes, memory.paper_bytes) == expected


@pytest.mark.parametrize("method", ["vanilla", "exact"])
@pytest.mark.parametrize("size", [4, 7])
def test_a_smaller_micro_batch_is_planned_with_the_bytes_it_really_takes_also_for_the_first_layer(method, size):
    """The first convolution keeps the raw images, which do not count, whole batch or not."""
    plan = plan_for(24_000 if method == "vanilla" else 15_000, size=size, method=method, layers=4)
    assert 0 < plan.micro_batch < size
    x, y = batch(plan.micro_batch)
    assert step(fedact.apply(net(), plan), x, y).saved_bytes == plan.saved_bytes


@examples(12)
@given(st.sampled_from(["hosvd:variance=0.6", "hosvd:variance=0.8", "hosvd:variance=0.99", "hosvd:variance=1.0"]),
       st.sampled_from([1, 2, 4]), st.integers(1, 9), st.sampled_from(["saved", "peak"]))  # fmt: skip
def test_a_variance_never_stores_more_than_its_caps_on_data_of_higher_rank(method, rank, seed, scope):
    plan = plan_for(10**7, size=6, method=method, scope=scope, rank=rank)
    memory = step(fedact.apply(net(), plan), *batch(6, seed))
    assert memory.saved_bytes <= plan.saved_bytes
    assert memory.peak_bytes <= plan.peak_bytes
    assert sum(kept.cap_bytes for kept in plan.kept) <= plan.saved_bytes


def strided() -> nn.Module:
    """The largest moment of a step is the compression of the trained convolution's input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 4, stride=4), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("variance", [0.8, 0.99, 1.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_variance_never_peaks_above_its_plan_where_compressing_is_the_peak(variance, seed):
    plan = fedact.make_plan(strided(), 10**7, batch(8), f"hosvd:variance={variance}", 1, "peak")
    assert step(fedact.apply(strided(), plan), *batch(8, seed)).peak_bytes <= plan.peak_bytes


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_no_step_is_hidden_or_over_its_plan_for_any_padding_mode(mode):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(mode)
    for method in ("exact", "hosvd", "hosvd:variance=0.8"):
        plan = fedact.make_plan(model, 20_000, batch(6), method, 4, "saved")
        memory = step(fedact.apply(copy.deepcopy(model), plan), *batch(plan.micro_batch, 3))
        assert memory.hidden_bytes == 0
        assert memory.saved_bytes <= plan.saved_bytes


@pytest.mark.parametrize("method", ["exact", "auto"])
def test_a_budget_larger_than_vanilla_needs_gives_vanillas_gradient(method):
    x, y = batch(8)
    plan = plan_for(plan_for(None, method="vanilla").saved_bytes + 1, method=method)
    assert (plan.status, plan.micro_batch, plan.reason) == ("ok", 8, None)
    gradients = []
    for model in (fedact.apply(net(), plan), fedact.compress(net(), "vanilla", layers=plan.layers)):
        F.cross_entropy(model(x), y).backward()
        gradients.append([p.grad for p in trained_parameters(model).values()])
    for ours, vanilla in zip(*gradients, strict=True):
        assert torch.allclose(ours, vanilla, rtol=1e-4, atol=1e-6)


def test_the_plan_says_what_vanilla_would_keep_and_what_the_device_needs_besides():
    model, (x, y) = net(), batch(8)
    plan = fedact.make_plan(model, 9_000, (x, y), "exact", 2, "saved", momentum=True)
    assert plan.micro_batch < 8
    vanilla = fedact.compress(net(), "vanilla", layers=2)
    assert plan.vanilla_saved_bytes == step(vanilla, x, y).saved_bytes
    trained = sum(p.nbytes for p in trained_parameters(vanilla).values())
    assert (plan.gradient_bytes, plan.optimizer_bytes) == (trained, trained)
    assert plan.weight_bytes == sum(t.nbytes for t in model.state_dict().values())


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("method", ["exact", "transform:bits=0.5", "transform:variance=0.9", "hosvd:variance=0.8"])
def test_inputs_that_are_made_again_count_once(method, layers):
    torch.manual_seed(0)
    model, (x, y) = mobilenet_v2(num_classes=5, width_mult=0.35), (torch.randn(4, 3, 64, 64), torch.arange(4))
    budget = None if method.startswith("exact") else "1MB"
    plan = fedact.make_plan(model, budget, (x, y), method, layers, "saved", recompute=2)
    caps = {kept.name: kept.cap_bytes for kept in plan.kept}
    assert (caps["features.17.conv.2"] == 0) == (layers == 4)
    ceiling = {name: kept.ceiling for name, kept in methods_of(model, plan).items()}
    memory = step(install(model, ceiling), x, y)
    assert sum(caps.values()) == sum(size for name, size in memory.by_layer.items() if name) <= plan.saved_bytes


@pytest.mark.parametrize(("method", "scope", "fixed"), [
    ("transform:bits=1", "saved", True), ("transform:bits=1", "peak", False), ("transform:variance=0.9", "saved", False),
    ("quantize", "peak", True), ("exact", "peak", True),
])  # fmt: skip
def test_a_step_whose_bytes_depend_on_the_data_is_always_measured(method, scope, fixed):
    assert plan_for(10**7, method=method, scope=scope).fixed is fixed
