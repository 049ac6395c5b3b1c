"""Steps that the ledger does not follow: their bytes are what it would find, whoever measured, and the budget is hard."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedact
from fedact.config.errors import BudgetError
from fedact.config.plan import Plan
from fedact.nn.layers.stored_sizes import StoredSizes
from fedact.training.local import LocalTraining, train_locally
from fedact.training.recipe import Recipe
from tests.support.laws import EVERY_SETTING
from tests.support.portions import rotated
from tests.support.storing import normed, residual, smooth

RECIPE = Recipe(batch_size=6, local_epochs=1, lr=0.05, momentum=0.9, weight_decay=0.0, clip_norm=1.0)
EVERY_STEP = range(10**6)


def images(examples: int, rank: int, seed: int = 0, side: int = 12) -> tuple[Tensor, Tensor]:
    """Return images of a few patterns, so that how much a method stores follows the rank, and labels."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(rank, 3 * side * side, generator=generator)
    x = torch.randn(examples, rank, generator=generator) @ patterns
    return x.view(examples, 3, side, side), torch.arange(examples) % 4


class Client:
    """A client's data: as many examples, of as many patterns."""

    def __init__(self, examples: int, rank: int, seed: int = 0) -> None:
        self.x, self.y = images(examples, rank, seed)

    def train(self, network: nn.Module, plan: Plan, **options) -> LocalTraining:
        model = fedact.apply(network, plan, seed=len(self.y))
        return train_locally(model, self.batch, len(self.y), plan, RECIPE, np.random.default_rng(0), **options)

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.x[torch.from_numpy(chosen)], self.y[torch.from_numpy(chosen)]


def plan_for(network, method: str, micro_batch: int = 4, **options) -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    model, settings = network()
    plan = fedact.make_plan(model, options.pop("budget", None), images(6, 6), method, **settings, momentum=True, **options)
    return model, dataclasses.replace(plan, micro_batch=micro_batch)


CLIENTS = [Client(13, 1, 1), Client(13, 13, 2), Client(10, 3, 3)]


@rotated(6, network=[residual, smooth, normed], method=EVERY_SETTING)
def test_counted_bytes_are_the_ledgers_at_every_step_of_every_client(network, method):
    model, plan = plan_for(network, method)
    shared: dict = {}
    for client in CLIENTS[:2]:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        # Where one of them disagreed, this would raise.
        followed = client.train(model, plan, measured=shared, audited=EVERY_STEP)
        weights = [parameter.clone() for parameter in model.parameters()]
        fedact.restore(model).load_state_dict(state)
        counted = client.train(model, plan, measured=shared, audited=())
        assert dataclasses.replace(counted, peak_bytes=0) == dataclasses.replace(followed, peak_bytes=0)
        assert all(map(torch.equal, weights, model.parameters()))
        fedact.restore(model).load_state_dict(state)


@pytest.mark.parametrize(
    "method", ["hosvd:variance=0.8", "svd", "transform", "asi:variance=0.8", "quantize", "transform:bits=2"]
)
@pytest.mark.parametrize("scope", ["saved", "peak"])
def test_figures_are_the_same_whichever_client_was_measured(method, scope):
    model, plan = plan_for(residual, method, scope=scope)
    state, found = {name: tensor.clone() for name, tensor in model.state_dict().items()}, []
    for order in ([0, 1, 2], [2, 0, 1], [1], [2], [0]):
        measured: dict = {}
        rows = {}
        for place in order:
            fedact.restore(model).load_state_dict(state)
            rows[place] = CLIENTS[place].train(model, plan, measured=measured, audited=())
        found.append(rows)
    for place in range(3):
        first, *others = [rows[place] for rows in found if place in rows]
        assert len(others) == 2
        assert others == [first, first]


def test_a_counted_step_over_the_budget_stops_before_weights_are_changed():
    model, plan = plan_for(residual, "hosvd:variance=0.99", micro_batch=6)
    shared: dict = {}
    least = Client(6, 1).train(model, plan, measured=shared).saved_bytes
    tight = dataclasses.replace(plan, budget_bytes=least)
    fedact.restore(model)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(BudgetError, match=f"over the budget of {least:,}"):
        Client(6, 6).train(model, tight, measured={tight: shared[plan]}, audited=())
    assert all(map(torch.equal, before, model.parameters()))


def test_ledger_and_count_that_differ_stop_the_training_with_both_numbers(monkeypatch):
    model, plan = plan_for(residual, "hosvd:variance=0.8")
    true = Client(13, 13).train(model, plan).saved_bytes
    end_call = StoredSizes.end_call

    def one_more(self, codec, x, compressed):
        end_call(self, codec, x, compressed)
        self.sizes[-1] += 1

    monkeypatch.setattr(StoredSizes, "end_call", one_more)
    fedact.restore(model)
    with pytest.raises(BudgetError, match=r"disagree: [\d,]+ saved bytes are measured, [\d,]+ are counted") as refused:
        Client(13, 13).train(model, plan)
    assert true > 0
    assert refused.value.args[0].count(",") >= 1


@pytest.mark.parametrize("method", ["hosvd:variance=0.8", "tucker:variance=0.8"])
def test_the_peak_on_the_servers_examples_is_the_ledgers(method):
    """What methods work with is the plan's: on the examples that it was measured on, nothing is left out or added."""
    model, plan = plan_for(normed, method, micro_batch=6)
    client, once = Client(6, 6), dataclasses.replace(RECIPE, lr=0.0)
    client.x, client.y = images(6, 6)
    model = fedact.apply(model, plan)
    # In its order, for what is stored may hang on rounding.
    model_batch = client.batch(np.arange(6))
    trained = train_locally(model, lambda _: model_batch, 6, plan, once, np.random.default_rng(0), audited=())
    assert plan.working_bytes > 0
    assert trained.peak_bytes == plan.peak_bytes
