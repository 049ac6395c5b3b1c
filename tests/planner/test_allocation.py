"""Allocation of a budget: on small networks nothing that fits has less error, and more bytes never mean more of it."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import choose_method
from fedact.planner.allocation import NEGLIGIBLE, ByteAllocation
from fedact.planner.drafts import MethodOption, option_for
from fedact.planner.example_check import fixed_randomness
from fedact.planner.problem import Problem, make_problem
from fedact.planner.profile import Profile
from fedact.planner.saved_inputs import SavedInput
from fedact.planner.slowdown import SlowdownLimit
from fedact.planner.step_memory import measure_step
from tests.support.planner_networks import NETWORKS, example, network
from tests.support.portions import rotated

WITHIN = 1.01
"""How much more error than the least a plan may have, besides what is negligible."""


def planned(name: str, budget: int | None, method: str):
    return fedact.make_plan(network(name), budget, example(), method, NETWORKS[name][1], "saved")


def sum_of_errors(plan) -> float:
    return sum(kept.expected_error or 0.0 for kept in plan.kept)


def budgets(name: str, shares) -> list[int]:
    """Return parts of what one example's exact gradient takes."""
    _, found = everything(name, "auto")
    place = next(place for place, each in enumerate(found) if each.micro_batch == 1)
    return [int(share * measured(name, "auto", place, 0)) for share in shares]


# Every combination ---------------------------------------------------------------------------------------------------------


class Combinations(NamedTuple):
    """All ways to keep everything in a micro-batch: the errors that they add up to, and the bytes of the tensors alone."""

    micro_batch: int
    inputs: list[SavedInput]
    options: list[list[MethodOption]]
    errors: np.ndarray
    sizes: np.ndarray

    def methods(self, place: int) -> dict[str, object]:
        chosen = np.unravel_index(place, self.errors.shape)
        picked = [options[each].method for options, each in zip(self.options, chosen, strict=True)]
        return {name: method for saved, method in zip(self.inputs, picked, strict=True) for name in saved.layers}


def problem_of(name: str, method: str) -> Problem:
    given = {"budget": None, "scope": "saved", "loss": F.cross_entropy}
    return make_problem(network(name), example(), method=choose_method(method), **given)


@cache
def everything(name: str, method: str) -> tuple[Problem, list[Combinations]]:
    with fixed_randomness(torch.device("cpu")):
        problem, depth = problem_of(name, method), NETWORKS[name][1]
        return problem, list(_combinations(problem, depth, ByteAllocation(problem, depth, SlowdownLimit(problem, None))))


def _combinations(problem: Problem, depth: int, allocation: ByteAllocation) -> Iterator[Combinations]:
    for family, micro_batch in product(allocation.families, problem.micro_batches()):
        profile = allocation.profiles.of(family, depth, micro_batch)
        inputs, trained = profile.saved_inputs(depth), problem.trained_in_order(depth)
        options = [[option_for(option, saved) for option in _allowed(profile, saved.key, micro_batch)] for saved in inputs]
        errors = [[_added(option, trained, profile.errors.damping) for option in each] for each in options]
        sizes = [
            [profile.size(option.method, saved.key, micro_batch) for option in each]
            for saved, each in zip(inputs, options, strict=True)
        ]
        yield Combinations(micro_batch, inputs, options, _sums(errors), _sums(sizes))


def _allowed(profile: Profile, key: str, micro_batch: int) -> list[MethodOption]:
    """Return what may be done with an input: a given method alone before a convolution, unless it is never smaller.

    Of a given method only the measured levels, for there would be millions of combinations.
    """
    places, shape = range(len(profile.ladders[key])), (micro_batch, *profile.inputs[key].shape[1:])
    options = profile.options({key: places})[key]
    if profile.family.method is None:
        return options
    exact, *levels = options[: len(profile.ladders[key])]
    smaller = [option for option in levels if option.method.predicted_bytes(shape) < 4 * prod(shape)]
    smaller = [] if key in profile.images else smaller
    return smaller if smaller and len(shape) == 4 else [exact, *smaller]


def _added(option: MethodOption, trained: list[str], damping: float) -> float:
    """Return the planner's objective: a layer's own error, and what passes its slopes in it and in all layers before."""
    weights, outputs = ({name: error for name, error in each.items() if name in trained} for each in option.errors)
    return sum(error * damping * (trained.index(name) + 1) for name, error in outputs.items()) + sum(weights.values())


def _sums(of_groups: list[list[float]]) -> np.ndarray:
    total = np.zeros(())
    for one in of_groups:
        total = np.add.outer(total, np.array(one))
    return total


@cache
def measured(name: str, method: str, place: int, way: int) -> int:
    problem, found = everything(name, method)
    with fixed_randomness(torch.device("cpu")):
        return measure_step(problem, found[place].methods(way), found[place].micro_batch).saved_bytes


def better(name: str, method: str, budget: int, error: float) -> Iterator[tuple[float, int]]:
    """Yield what has less error than a plan, with its measured bytes.

    Left out is what cannot fit: what a step holds besides the tensors is the least where they are kept as they are.
    """
    for place, found in enumerate(everything(name, method)[1]):
        besides = measured(name, method, place, 0) - found.sizes.flat[0]
        for way in np.flatnonzero((found.errors < error) & (found.sizes + besides <= budget)):
            yield float(found.errors.flat[way]), measured(name, method, place, int(way))


@rotated(2, name=NETWORKS, method=["auto", "hosvd"], share=[0.15, 0.4, 0.9])
def test_nothing_that_fits_has_less_error(name, method, share):
    (budget,) = budgets(name, [share])
    plan = planned(name, budget, method)
    negligible = NEGLIGIBLE * len(problem_of(name, method).trained(NETWORKS[name][1]))
    limit = (sum_of_errors(plan) - negligible) / WITHIN if plan.layers else float("inf")
    assert [found for found in better(name, method, budget, limit) if found[1] <= budget] == []
    assert plan.status == "skipped" or plan.saved_bytes <= budget


@pytest.mark.parametrize("method", ["auto", "hosvd"])
@pytest.mark.parametrize("name", NETWORKS)
def test_more_bytes_never_mean_more_error(name, method):
    most = planned(name, None, "vanilla").saved_bytes
    plans = [planned(name, budget, method) for budget in [*budgets(name, [0.12, 0.3, 0.5, 1.0]), most]]
    errors = [sum_of_errors(plan) for plan in plans if plan.layers]
    negligible = NEGLIGIBLE * len(plans[-1].kept)
    assert all(later <= WITHIN * earlier + negligible for earlier, later in pairwise(errors))
    assert [plan.layers for plan in plans] == sorted(plan.layers for plan in plans)
    assert sum_of_errors(plans[-1]) <= (0 if method == "auto" else negligible)


def test_every_combination_is_looked_at():
    """One of them is the exact gradient of the whole batch, in the bytes of an exact plan."""
    for name in NETWORKS:
        _, found = everything(name, "auto")
        assert {each.micro_batch for each in found} == {4, 2, 1}
        assert all(2 <= len(each.inputs) <= 4 for each in found)
        assert found[0].errors.flat[0] == 0
        assert measured(name, "auto", 0, 0) == planned(name, None, "exact:derive=3").saved_bytes
