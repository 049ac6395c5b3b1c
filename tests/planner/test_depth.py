"""How many layers to train, and how fast: gradients' norms against autograd, and the laws of what decides the depth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import fedact
from fedact.planner import slowdown
from fedact.planner.depth import (
    DEFAULT_DEPTH,
    HEAD_MOMENTUM,
    HEAD_STEPS,
    SUFFICIENT_SHARE,
    candidate_depths,
    expected_loss_decrease,
    squared_gradient_norms,
    sufficient_depth,
)
from tests.support.planned import batch, net

TRAINED = ["depthwise", "left", "right", "head"]


def by_autograd(model: nn.Module, fitted, held_out) -> dict[str, float]:
    """Return the squared gradients of one half where the head was fitted to the other, with nothing of the planner's."""
    model = copy.deepcopy(model).eval()
    features = []
    handle = model.head.register_forward_pre_hook(lambda module, args: features.append(args[0].detach()))
    model(fitted[0])
    handle.remove()
    weight, bias = torch.zeros_like(model.head.weight), torch.zeros_like(model.head.bias)
    rate, momenta = 1 / features[0].square().sum(1).mean(), [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(HEAD_STEPS):
        weight, bias = weight.requires_grad_(), bias.requires_grad_()
        gradients = torch.autograd.grad(F.cross_entropy(F.linear(features[0], weight, bias), fitted[1]), [weight, bias])
        momenta = [HEAD_MOMENTUM * momentum + g for momentum, g in zip(momenta, gradients, strict=True)]
        weight, bias = (p.detach() - rate * m for p, m in zip((weight, bias), momenta, strict=True))
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
    F.cross_entropy(model(held_out[0]), held_out[1]).backward()
    return {name: float(model.get_submodule(name).weight.grad.square().sum()) for name in TRAINED}


@pytest.mark.parametrize("size", [2, 5, 8])
def test_norms_are_autograds_on_each_half_with_the_head_fitted_to_the_other(size):
    x, y = batch(size, seed=size)
    first, second = ((x[: (size + 1) // 2], y[: (size + 1) // 2]), (x[(size + 1) // 2 :], y[(size + 1) // 2 :]))
    one, other = by_autograd(net(), first, second), by_autograd(net(), second, first)
    norms = squared_gradient_norms(net(), (x, y), TRAINED, F.cross_entropy)
    assert norms == pytest.approx({name: one[name] + other[name] for name in TRAINED}, rel=1e-3)


def test_without_a_trained_head_the_norms_are_the_gradients_own():
    x, y = batch(6)
    expected = dict.fromkeys(["left", "right"], 0.0)
    for part in (slice(0, 3), slice(3, 6)):
        model = net().eval()
        F.cross_entropy(model(x[part]), y[part]).backward()
        for name in expected:
            expected[name] += float(model.get_submodule(name).weight.grad.square().sum())
    norms = squared_gradient_norms(net(), (x, y), ["left", "right"], F.cross_entropy)
    assert norms == pytest.approx(expected, rel=1e-3)


def test_one_example_tells_nothing():
    assert squared_gradient_norms(net(), batch(1), TRAINED, F.cross_entropy) == dict.fromkeys(TRAINED, 0.0)


def test_the_weights_are_what_they_were_and_no_gradient_is_left():
    model = net()
    before = copy.deepcopy(model.state_dict())
    squared_gradient_norms(model, batch(6), TRAINED, F.cross_entropy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def with_a_head(*layers: nn.Module, head_name: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), *layers)
    model.head_name = head_name
    return model


def test_a_convolution_on_one_pixel_is_fitted_as_a_linear_head_is():
    torch.manual_seed(1)
    linear, convolution = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
    norms = squared_gradient_norms(with_a_head(nn.Flatten(), linear, head_name="4"), batch(6), ["0", "4"], F.cross_entropy)
    found = squared_gradient_norms(
        with_a_head(convolution, nn.Flatten(), head_name="3"), batch(6), ["0", "3"], F.cross_entropy
    )
    assert [found["0"], found["3"]] == pytest.approx([norms["0"], norms["4"]], rel=1e-4)


def test_a_convolutional_head_is_fitted_to_the_loss_of_its_pixels_whatever_its_inputs_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    model.head_name = "2"
    x, _ = batch(4)
    masks = (x.sum(1) > 0).long()
    norms = [squared_gradient_norms(model, (scale * x, masks), ["0", "2"], F.cross_entropy)["2"] for scale in (1, 1e3)]
    assert 0 < norms[0] < float("inf")
    assert 0 < norms[1] < float("inf")


# What decides the depth ----------------------------------------------------------------------------------------------------

numbers = st.floats(1e-6, 1e6)
names = [str(place) for place in range(6)]
by_layer = st.fixed_dictionaries(dict.fromkeys(names, numbers))
depths = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True).map(sorted)


def nested(depths, errors) -> dict[int, dict[str, float]]:
    """Return the errors of depths at each of which one more layer is trained."""
    return {depth: {name: errors[name] for name in names[: place + 1]} for place, depth in enumerate(depths)}


@given(by_layer, by_layer, st.sampled_from(names), numbers)
def test_more_error_teaches_less_and_none_teaches_the_most(norms, errors, name, more):
    assert expected_loss_decrease(norms, dict.fromkeys(names, 0.0)) == pytest.approx(sum(norms.values()))
    assert expected_loss_decrease(norms, errors) <= sum(norms.values())
    assert expected_loss_decrease(norms, errors | {name: errors[name] + more}) <= expected_loss_decrease(norms, errors)
    assert expected_loss_decrease(norms, {}) == 0


@given(by_layer, by_layer, st.floats(0.01, 100))
def test_learning_follows_the_squared_gradients(norms, errors, times):
    longer = {name: times * length for name, length in norms.items()}
    assert expected_loss_decrease(longer, errors) == pytest.approx(times * expected_loss_decrease(norms, errors))


@given(depths, by_layer, by_layer, st.floats(0.05, 1))
def test_the_depth_is_the_least_that_teaches_enough(depths, norms, errors, enough):
    at = nested(depths, errors)
    chosen = sufficient_depth(at, norms, enough)
    teaches = {depth: expected_loss_decrease(norms, each) for depth, each in at.items()}
    most = max(teaches.values())
    assert teaches[chosen] >= enough * most
    assert all(teaches[depth] < enough * most for depth in depths if depth < chosen)


@given(depths, by_layer, by_layer, st.floats(0.05, 1), st.floats(0.05, 1))
def test_asking_for_more_never_trains_fewer_layers(depths, norms, errors, one, other):
    assume(one <= other)
    at = nested(depths, errors)
    assert sufficient_depth(at, norms, one) <= sufficient_depth(at, norms, other)
    assert sufficient_depth(at, norms) == sufficient_depth(at, norms, SUFFICIENT_SHARE)


@pytest.mark.parametrize("untold", [0.0, float("inf"), float("nan")])
def test_norms_that_tell_nothing_leave_a_depth_that_was_settled_beforehand(untold):
    norms = dict.fromkeys(names, untold)
    assert sufficient_depth(nested([0, 1, 4, DEFAULT_DEPTH, 12, 40], dict.fromkeys(names, 0.1)), norms) == DEFAULT_DEPTH
    assert sufficient_depth(nested([1, 3], dict.fromkeys(names, 0.1)), norms) == 3
    assert sufficient_depth(nested([12, 40], dict.fromkeys(names, 0.1)), norms) == 12


def test_where_nothing_fits_there_is_no_depth():
    assert sufficient_depth({}, dict.fromkeys(names, 1.0)) is None


@given(depths)
def test_the_depths_that_are_looked_at_are_the_shallow_ones_and_the_deepest(depths):
    looked_at = candidate_depths(depths)
    assert looked_at == sorted(set(looked_at))
    assert {depth for depth in depths if depth < 4 or depth == depths[-1]} <= set(looked_at) <= set(depths)


# The slowdown --------------------------------------------------------------------------------------------------------------


def set_clock(monkeypatch, seconds_of) -> None:
    """Let every timed step take as long as it is told by the model it is taken on and its number of examples."""
    now, step = [0.0], slowdown.micro_step

    def timed(model, x, y, *others):
        now[0] += seconds_of(model, len(y))
        return step(model, x, y, *others)

    monkeypatch.setattr(slowdown, "micro_step", timed)
    monkeypatch.setattr(slowdown, "_now", lambda x: now[0])


def is_plain(model: nn.Module) -> bool:
    return not any(method.traits.saves_less for module in model.modules() if (method := getattr(module, "method", None)))


def planned(budget, method, bound):
    return fedact.make_plan(net(), budget, batch(8), method, 2, max_slowdown=bound)


@pytest.mark.parametrize(("seconds", "bound", "kept"), [(2.0, 2.0, True), (2.0, 1.99, False), (0.5, 0.6, True)])
def test_a_plan_is_kept_where_it_takes_no_longer_than_the_bound(monkeypatch, seconds, bound, kept):
    set_clock(monkeypatch, lambda model, size: 1.0 if is_plain(model) else seconds)
    plan = planned(10**6, "quantize:bits=4", bound)
    assert (plan.status == "ok") == kept
    if kept:
        assert plan.slowdown == pytest.approx(seconds)
    else:
        assert f"takes more than {bound:g} times as long as plain training" in plan.reason


def test_a_batch_takes_as_long_as_all_its_micro_batches(monkeypatch):
    set_clock(monkeypatch, lambda model, size: 1.0)
    budget = fedact.make_plan(net(), None, batch(8), "exact", 2).saved_bytes // 2
    plan = planned(budget, "exact", 100.0)
    assert plan.micro_batch < 8
    assert plan.slowdown == -(-8 // plan.micro_batch)


@pytest.mark.parametrize("bound", [1.0, 2.0, 4.0, 8.0])
def test_a_mix_has_no_more_micro_batches_than_there_is_time_for(monkeypatch, bound):
    set_clock(monkeypatch, lambda model, size: 1.0)
    plan = planned(4_000, "auto", bound)
    assert plan.status != "skipped"
    assert plan.slowdown == -(-8 // plan.micro_batch) <= bound


def test_without_a_bound_nothing_is_timed(monkeypatch):
    set_clock(monkeypatch, lambda model, size: pytest.fail("timed"))
    assert planned(9_000, "hosvd", None).slowdown is None
