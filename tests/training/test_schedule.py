"""The learning rate over the rounds."""

from itertools import pairwise
from math import cos, pi

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from fedact.config.errors import ConfigError
from fedact.config.loading import make_config
from fedact.training.recipe import learning_rate


def rates(**settings) -> list[float]:
    config = make_config({"lr": 1.0, **settings})
    return [learning_rate(config, number) for number in range(1, config.rounds + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "rounds": 3}, [1, 1, 1]),
        ({"schedule": "cosine", "rounds": 4}, [1, (1 + cos(pi / 4)) / 2, 0.5, (1 - cos(pi / 4)) / 2]),
        ({"schedule": "poly", "rounds": 2}, [1, 0.5**0.9]),
        ({"schedule": "constant", "rounds": 4, "warmup_rounds": 3}, [0.25, 0.5, 0.75, 1]),
        ({"schedule": "cosine", "rounds": 4, "warmup_rounds": 2}, [1 / 3, 2 / 3, 1, 0.5]),
        ({"schedule": "poly", "rounds": 3, "warmup_rounds": 1}, [0.5, 1, 0.5**0.9]),
    ],
)
def test_rates_of_known_cases(settings, expected):
    assert rates(**settings) == pytest.approx(expected)


schedules = st.sampled_from(["constant", "cosine", "poly"])


@given(schedules, st.integers(1, 60), st.data())
def test_it_rises_to_the_whole_rate_and_then_never_again_and_is_never_nothing(schedule, rounds, data):
    warmup = data.draw(st.integers(0, rounds - 1))
    found = rates(schedule=schedule, rounds=rounds, warmup_rounds=warmup)
    assert found[warmup] == max(found) == 1
    assert all(0 < first < second for first, second in pairwise(found[: warmup + 1]))
    assert all(first >= second > 0 for first, second in pairwise(found[warmup:]))


@given(schedules, st.integers(1, 40), st.integers(1, 20))
def test_after_the_warm_up_the_rounds_are_those_of_a_shorter_run(schedule, rounds, warmup):
    longer = rates(schedule=schedule, rounds=rounds + warmup, warmup_rounds=warmup)
    assert longer[warmup:] == pytest.approx(rates(schedule=schedule, rounds=rounds))


def test_a_run_without_rounds_needs_no_warm_up():
    assert rates(rounds=0, warmup_rounds=0) == []


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (3, 3), (3, 10**30)])
def test_a_warm_up_that_never_ends_is_refused(rounds, warmup):
    with pytest.raises(ConfigError, match=rf"^--warmup-rounds {warmup} must be fewer than the {rounds} rounds"):
        make_config({"rounds": rounds, "warmup_rounds": warmup})


def theirs(make, rounds: int = 12) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler, found = make(optimizer), []
    for _ in range(rounds):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SCHEDULES = {
    "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 12),
    "poly": lambda optimizer: lr_scheduler.PolynomialLR(optimizer, 12, 0.9),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_pytorchs(name):
    assert rates(schedule=name, rounds=12, lr=0.3) == pytest.approx(theirs(SCHEDULES[name]))
