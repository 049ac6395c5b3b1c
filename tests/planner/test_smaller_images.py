"""A plan for too small a budget of peak bytes says what would fit: images, and bytes."""

import re

import pytest
import torch
from torch import nn

import fedact


def network(any_size: bool = True) -> nn.Module:
    torch.manual_seed(0)
    pooled = (
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)] if any_size else [nn.Flatten(), nn.Linear(16 * 900, 4)]
    )
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), *pooled)


def plan_at(side: int, budget: int, model: nn.Module | None = None, width: int | None = None, **given) -> fedact.Plan:
    x = torch.rand(4, 3, side, width or side, generator=torch.Generator().manual_seed(0))
    example = x, torch.tensor([0, 1, 2, 3])
    return fedact.make_plan(model or network(), budget, example, given.pop("method", "exact"), scope="peak", **given)


def test_a_skipped_plan_names_the_largest_images_that_fit_and_their_bytes():
    budget = 60_000
    plan = plan_at(32, budget)
    assert plan.status == "skipped"
    assert f"needs {plan.least_bytes:,} peak bytes" in plan.reason
    # Norms and activations write in place: what runs the model is what its largest layer takes.
    assert f"inference alone peaks at {plan.floor_bytes:,} bytes" in plan.reason
    found = re.search(r"with images of (\d+) px that would take ([\d,]+)$", plan.reason)
    side, needed = int(found[1]), int(found[2].replace(",", ""))
    assert (side % 8, needed <= budget) == (0, True)
    assert plan_at(side, needed).status == "head-only"
    assert plan_at(side, needed - 1).status == "skipped"
    # The next size up does not fit.
    assert plan_at(side + 8, budget).status == "skipped"


def test_both_sides_shrink_alike():
    assert "with images of 24 x 48 px that would take" in plan_at(32, 110_000, width=64).reason


@pytest.mark.parametrize(("budget", "any_size"), [(10, True), (60_000, False)])
def test_nothing_is_said_where_nothing_fits_or_the_network_takes_one_size(budget, any_size):
    plan = plan_at(32, budget, network(any_size))
    assert plan.status == "skipped"
    assert "px" not in plan.reason
    assert re.search(r"; inference alone peaks at [\d,]+ bytes(, [\d,]+ in (streams and )?\d x \d tiles)?$", plan.reason)


def test_the_head_alone_says_what_one_layer_would_need():
    least = plan_at(32, 10, layers=1, method="exact").least_bytes
    everything = plan_at(32, None, layers=1).peak_bytes
    assert least < everything
    plan = plan_at(16, plan_at(16, 10).least_bytes)
    assert plan.status == "head-only"
    needed = re.search(r"layers 2 to 0 \(one layer needs at least ([\d,]+) bytes\)", plan.reason)
    assert plan_at(16, int(needed[1].replace(",", "")), layers=1).status == "ok"
