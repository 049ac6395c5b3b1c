"""The gradient error that a plan expects: autograd's, and about what its tensors' own errors add up to."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.compression import make_method
from fedact.measure.step import parts
from fedact.nn.surgery import calibrate, trained_layers
from fedact.planner import expected_error
from tests.support.planned import batch, net
from tests.support.planner_networks import NETWORKS, example, network

EXAMPLES = 6


def plain_gradients(model: nn.Module, x: Tensor, y: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return autograd's gradients of a plain copy, in double precision, of the whole batch at once."""
    model = copy.deepcopy(model).double().eval()
    F.cross_entropy(model(x.double()), y).backward()
    return {name: model.get_submodule(name).weight.grad for name in names}


def gradients_under(model: nn.Module, plan, x: Tensor, y: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Return a copy's gradients under a plan, micro-batch by micro-batch."""
    model = fedact.apply(copy.deepcopy(model), plan)
    if any(make_method(kept.method).traits.calibrated for kept in plan.kept):
        calibrate(model, x)
    for some, labels in parts((x, y), plan.micro_batch):
        (F.cross_entropy(model(some), labels, reduction="sum") / len(y)).backward()
    return {name: model.get_submodule(name).weight.grad.double() for name in names}


def by_autograd(model: nn.Module, plan, x: Tensor, y: Tensor) -> float:
    """Return the sum over the trained layers of ||g' - g||^2 / ||g||^2."""
    names = trained_layers(model, plan.layers)
    ours, exact = gradients_under(model, plan, x, y, names), plain_gradients(model, x, y, names)
    return sum(float((ours[name] - g).square().sum() / g.square().sum()) for name, g in exact.items())


METHODS = [
    "auto", "hosvd", "hosvd:variance=0.8", "svd:variance=0.7", "tucker:variance=0.8", "asi:variance=0.8",
    "lance:variance=0.8", "gradient_filter", "quantize:bits=2", "transform", "transform:variance=0.9", "vanilla",
    "checkpoint", "exact:derive=2",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [6_000, 12_000])
def test_the_error_is_autograds(method, budget):
    model, (x, y) = net(), batch(EXAMPLES)
    plan = fedact.make_plan(model, budget, (x, y), method, 2, "saved")
    assert plan.status != "skipped"
    assert plan.expected_error == pytest.approx(by_autograd(model, plan, x, y), rel=2e-3, abs=1e-10)


@pytest.mark.parametrize("method", ["auto", "hosvd:variance=0.8", "quantize:bits=4", "exact"])
def test_a_plans_error_on_other_examples_and_weights_is_autograds_too(method):
    model, (x, y) = net(), batch(EXAMPLES, seed=3)
    plan = fedact.make_plan(model, 6_000, batch(EXAMPLES), method, 2, "saved")
    assert expected_error(model, plan, batch(EXAMPLES)) == plan.expected_error
    with torch.no_grad():
        model.left.weight.mul_(-2)
    before = copy.deepcopy(model.state_dict())
    found = expected_error(model, plan, (x, y))
    assert found == pytest.approx(by_autograd(model, plan, x, y), rel=2e-3, abs=1e-10)
    assert (found == plan.expected_error) == (plan.expected_error == 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_is_the_losss_gradient_that_is_asked_for():
    model, example = net(), batch(EXAMPLES)
    plan = fedact.make_plan(model, 3_000, example, "quantize:bits=2", 2, "saved")
    squares = expected_error(model, plan, example, lambda scores, y: F.mse_loss(scores, F.one_hot(y, 4).float()))
    assert squares not in (0, plan.expected_error)


@pytest.mark.parametrize("share", [0.04, 0.06, 0.1, 0.2])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_tensors_errors_add_up_to_about_the_truth(name, share):
    """They are found layer by layer and, between measured levels, by a power law: the sum tells a plan's size of error."""
    whole = fedact.make_plan(network(name), None, example(), "exact", NETWORKS[name][1]).saved_bytes
    plan = fedact.make_plan(network(name), int(share * whole), example(), "auto", NETWORKS[name][1], "saved")
    told, true = sum(kept.expected_error or 0.0 for kept in plan.kept), plan.expected_error
    assert told / 4 - 1e-5 <= true <= 4 * told + 1e-5
