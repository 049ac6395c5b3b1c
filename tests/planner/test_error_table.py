"""Gradient errors from the table of one exact step are those of steps with the methods in place."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedact.compression import choose_method
from fedact.planner.allocation import ByteAllocation
from fedact.planner.example_check import fixed_randomness
from fedact.planner.gradient_errors import GradientErrors
from fedact.planner.problem import make_problem
from fedact.planner.sensitivity import Sensitivity, measure_damping, measure_sensitivity
from fedact.planner.slowdown import SlowdownLimit
from tests.support.planned import batch, net
from tests.support.planner_networks import NETWORKS, example, network


def both(model: nn.Module, data, depth: int, method: str, train_norm: bool = False, family: int = 0):
    """Return what the table and what steps with the methods in place say of one of a method's families."""
    given = {"budget": 10**6, "scope": "saved", "loss": F.cross_entropy, "train_norm": train_norm}
    problem = make_problem(model, data, method=choose_method(method), **given)
    allocation = ByteAllocation(problem, depth, SlowdownLimit(problem, None))
    whole, trained = problem.examples(problem.batch_size), problem.trained_in_order(depth)
    # What families before have found is found again.
    for each in allocation.families[: family + 1]:
        profile = allocation.profiles.of(each, depth, problem.batch_size)
        steps, levels = profile.steps, [profile.errors.methods(level) for level in range(profile.errors.level_count)]
        table = steps.table(0)
        if table is not None:
            found = table.errors(profile.ladders, steps.spectra(each, 0), steps.rows.setdefault(0, {}))
            errors = [GradientErrors.united(row) for row in zip(*found.values(), strict=True)]
            middle = len(levels) // 2
            damping = measure_damping(problem.model, whole, levels[middle], errors[middle], table.exact, problem.loss)
            table = Sensitivity(errors, damping)
    return table, measure_sensitivity(problem.model, whole, trained, levels, problem.loss)


@pytest.mark.parametrize("method", ["auto", "hosvd", "transform"])
@pytest.mark.parametrize(("name", "train_norm"), [*product(NETWORKS, [False]), ("depthwise", True), ("net", True)])
def test_a_table_says_what_steps_with_the_methods_in_place_say(name, train_norm, method):
    model, data, depth = (net(), batch(4), 3) if name == "net" else (network(name), example(), NETWORKS[name][1])
    with fixed_randomness(torch.device("cpu")):
        table, steps = both(model, data, depth, method, train_norm)
    check(table, steps)


@pytest.mark.parametrize("name", NETWORKS)
def test_errors_of_one_family_are_shared_with_the_next(name):
    with fixed_randomness(torch.device("cpu")):
        check(*both(network(name), example(), NETWORKS[name][1], "auto", family=1))


def check(table, steps) -> None:
    assert table.damping == pytest.approx(steps.damping, rel=1e-3)
    for found, expected in zip(table.levels, steps.levels, strict=True):
        assert found.weights == pytest.approx(expected.weights, rel=1e-3, abs=1e-7)
        # Elsewhere no slope is computed from a saved input.
        assert {name: found.outputs.get(name, 0.0) for name in expected.outputs} == pytest.approx(
            expected.outputs, rel=1e-3, abs=1e-7
        )


def test_the_error_that_fewer_bits_add_is_known_roughly():
    with fixed_randomness(torch.device("cpu")):
        table, steps = both(net(), batch(4), 3, "hosvd", family=1)
    for found, expected in zip(table.levels[1:], steps.levels[1:], strict=True):
        assert min(found.weights.values()) > 0
        assert found.weights == pytest.approx(expected.weights, rel=0.02, abs=1e-3)


def norms_of_examples() -> nn.Module:
    """Return trained convolutions before norms of each example's, with nothing between."""
    first = nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(6, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


@pytest.mark.parametrize("method", ["hosvd", "quantize", "transform"])
def test_a_table_knows_that_norms_have_their_exact_deviation(method):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = norms_of_examples().eval(), example()
        model(data[0])
    with fixed_randomness(torch.device("cpu")):
        table, steps = both(model, data, 2, method)
    check(table, steps)
    assert any(error > 0 for level in table.levels for error in level.outputs.values())


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x):
        x = self.twice(self.stem(x).relu()).relu()
        return self.head(self.twice(x).mean((2, 3)))


def hooked() -> nn.Module:
    """Return a network in which a hook changes a trained layer's input."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda module, args: 2 * args[0])
    return model


@pytest.mark.parametrize("make", [CalledTwice, hooked])
def test_there_is_no_table_of_a_network_out_of_the_ordinary(make):
    table, steps = both(make(), batch(4), 1, "hosvd")
    assert table is None
    assert len(steps.levels) > 1
