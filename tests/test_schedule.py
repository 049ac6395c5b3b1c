"""The learning rate over the rounds, against PyTorch's own schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from fedact.config import make_config
from fedact.errors import ConfigError
from fedact.schedule import learning_rate


def ours(**settings) -> list[float]:
    config = make_config({"rounds": 12, "lr": 0.3, **settings})
    return [learning_rate(config, number) for number in range(1, config.rounds + 1)]


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
    assert ours(schedule=name) == pytest.approx(theirs(SCHEDULES[name]))


def test_warm_up_rises_in_equal_steps_and_the_schedule_follows():
    found = ours(schedule="cosine", warmup_rounds=4)
    assert found[:5] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])
    rest = theirs(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 8), 8)
    assert found[4:] == pytest.approx(rest)


@pytest.mark.parametrize(("rounds", "warmup"), [(3, 3), (3, 9), (0, 1), (1, 1)])
def test_warm_up_is_shorter_than_the_run(rounds, warmup):
    with pytest.raises(ConfigError, match="--warmup-rounds is below"):
        make_config({"rounds": rounds, "warmup_rounds": warmup})


def test_no_rounds_need_no_warm_up():
    assert make_config({"rounds": 0}).warmup_rounds == 0
