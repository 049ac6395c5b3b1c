"""Plans: the model is left alone, and who gives way."""

import copy

import pytest
import torch
from torch import nn

import fedact
from fedact.config.plan import Plan
from tests.support.planned import batch, net, plan_for

# The model -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("installed", [None, "exact"])
@pytest.mark.parametrize("budget", [None, "100KB", 10])
def test_the_model_is_left_as_it_is(training, installed, budget):
    model = net().train(training)
    if installed:
        fedact.compress(model, installed, layers=1)
    model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
    model.stem[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    fedact.make_plan(model, budget, batch(4), "hosvd")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [set(vars(m)) for m in model.modules()] == [set(vars(m)) for m in before.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == {"stem.0.weight"}
    assert torch.equal(gradients["stem.0.weight"], torch.ones_like(model.stem[0].weight))


# Who gives way -------------------------------------------------------------------------------------------------------------


def rank_of(plan: Plan) -> tuple[int, int]:
    """Order plans by how much gave way: layers weigh more than the micro-batch."""
    return plan.layers, plan.micro_batch


@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd:variance=0.8", "hosvd"])
def test_the_micro_batch_gives_way_before_the_layers_and_the_head_stays_last(method):
    seen = [plan_for(budget, method=method, size=4) for budget in (10**6, 16_000, 6_000, 1_000, 20)]
    asked = seen[0].layers
    assert asked >= 2
    assert seen[0].micro_batch == 4
    assert [rank_of(p) for p in seen] == sorted((rank_of(p) for p in seen), reverse=True)
    assert seen[-1].status == "skipped"
    for plan in seen:
        assert plan.status == ("skipped" if plan.micro_batch == 0 else "ok" if plan.layers else "head-only")
        capped = "ranks at most" in (plan.reason or "")
        assert (plan.reason is None) == (plan.layers == asked and plan.micro_batch == 4 and not capped)
        assert not capped or method == "hosvd:variance=0.8"


def test_caps_on_ranks_give_way_before_the_micro_batch_and_the_reason_says_so():
    whole = plan_for(None, method="hosvd:variance=0.8", layers=3).saved_bytes
    plans = [plan_for(int(share * whole), method="hosvd:variance=0.8", layers=3) for share in (1.0, 0.6, 0.3)]
    sizes = [plan.micro_batch for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == plans[0].batch_size > sizes[-1]
    assert plans[0].reason.startswith("ranks at most those of variance 0.")
    assert any("max_ranks" in kept.method for kept in plans[0].kept)


def test_given_layers_are_kept_until_only_the_head_is_left():
    plans = [plan_for(budget, layers=3) for budget in (100, 500, 3_000, 6_000, 20_000, 40_000)]
    assert {plan.layers for plan in plans} == {0, 3}
    assert {plan.status for plan in plans} == {"ok", "head-only"}


def test_no_layer_is_given_up_while_a_smaller_micro_batch_would_fit():
    for budget in range(1_000, 9_001, 1_000):
        plan = plan_for(budget)
        if plan.layers < plan_for(None).layers and plan.status != "skipped":
            one_more = plan_for(None, size=1, layers=plan.layers + 1)
            assert one_more.saved_bytes > budget


@pytest.mark.parametrize("scope", ["saved", "peak"])
@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd", "hosvd:variance=0.8"])
def test_a_skipped_client_is_told_the_least_that_it_would_need(method, scope):
    plan = plan_for(1, method=method, scope=scope, size=2, layers=1)
    assert (plan.status, plan.micro_batch, plan.kept, plan.saved_bytes) == ("skipped", 0, (), None)
    assert f"{plan.least_bytes:,} {scope} bytes" in plan.reason
    assert ("inference" in plan.reason) == (scope == "peak")
    fits = plan_for(plan.least_bytes, method=method, scope=scope, size=2, layers=0)
    assert (fits.status, fits.saved_bytes if scope == "saved" else fits.peak_bytes) == ("head-only", plan.least_bytes)
    assert plan_for(plan.least_bytes - 1, method=method, scope=scope, size=2, layers=0).status == "skipped"


class Convolutional(nn.Sequential):
    """A network without a linear head."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_network_without_a_linear_head_is_skipped_where_nothing_fits():
    # With its second layer's input made again from the images it takes 20 bytes.
    plan = fedact.make_plan(Convolutional(), 19, batch(4), "exact", scope="saved")
    assert plan.status == "skipped"
    assert plan.least_bytes > 19
