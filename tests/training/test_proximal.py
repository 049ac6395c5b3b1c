"""FedProx's pull: against autograd of its term, before clipping, and a copy of the weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedact.measure.memory import measure_memory
from fedact.nn.surgery import apply, trained_parameters
from fedact.training.local import add_proximal_gradient, copies_of, train_locally
from fedact.training.recipe import Recipe
from tests.support.planned import net, plan_for
from tests.support.portions import examples

RECIPE = Recipe(batch_size=8, local_epochs=2, lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=1e9)


@examples(25)
@given(st.integers(0, 1000), st.floats(0, 10), st.floats(0.01, 5))
def test_the_gradient_is_autograds_of_the_loss_and_the_term(seed, mu, moved):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    start, x = w.detach() + moved, torch.randn(4, 5, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((x @ w).square().sum() + mu / 2 * (w - start).square().sum(), w)
    (x @ w).square().sum().backward()
    add_proximal_gradient([w], [start], mu)
    torch.testing.assert_close(w.grad, expected)


def batches():
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(16, 3, 8, 8)).astype(np.float32))
    y = torch.from_numpy(random.integers(4, size=16))
    return lambda chosen: (x[chosen], y[chosen])


def trained(**changes) -> tuple[nn.Module, object]:
    plan = plan_for("20KB")
    model = apply(net(), plan)
    recipe = Recipe(**{**vars(RECIPE), **changes})
    return model, train_locally(model, batches(), 16, plan, recipe, np.random.default_rng(1))


@pytest.mark.parametrize("clip_norm", [1e9, 0.05])
def test_local_training_is_plain_sgd_on_the_loss_with_the_term(clip_norm):
    """An oracle with whole batches, autograd's term and torch's own clipping."""
    mu, oracle = 3.0, apply(net(), plan_for("20KB"))
    parameters = list(trained_parameters(oracle).values())
    starts, random, load = copies_of(parameters), np.random.default_rng(1), batches()
    for _ in range(RECIPE.local_epochs):
        order = random.permutation(16)
        for chosen in (order[:8], order[8:]):
            x, y = load(chosen)
            term = sum((p - s).square().sum() for p, s in zip(parameters, starts, strict=True))
            gradients = torch.autograd.grad(F.cross_entropy(oracle(x), y) + mu / 2 * term, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, clip_norm)
            with torch.no_grad():
                for parameter in parameters:
                    parameter -= RECIPE.lr * parameter.grad
    model, _ = trained(pull=mu, clip_norm=clip_norm)
    for actual, expected in zip(trained_parameters(model).values(), parameters, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_the_stronger_the_pull_the_nearer_the_weights_stay():
    start = list(trained_parameters(apply(net(), plan_for("20KB"))).values())

    def way(mu):
        model, _ = trained(pull=mu)
        pairs = zip(trained_parameters(model).values(), start, strict=True)
        return float(sum((p.detach() - s.detach()).square().sum() for p, s in pairs))

    assert way(5.0) < way(1.0) < way(0.0)


def test_a_copy_of_the_trained_weights_is_counted_and_no_byte_of_activation_memory_changes():
    (_, without), (model, with_pull) = trained(), trained(pull=1.0)
    weights = sum(parameter.nbytes for parameter in trained_parameters(model).values())
    assert (without.copy_bytes, with_pull.copy_bytes) == (0, weights)
    for name in ("saved_bytes", "state_bytes", "peak_bytes", "paper_bytes"):
        assert getattr(with_pull, name) == getattr(without, name)


def test_pulling_holds_nothing_while_it_works():
    model, x = nn.Linear(1000, 100), torch.zeros(1, 1000)
    parameters = list(model.parameters())
    starts = copies_of(parameters)
    model(x).sum().backward()
    with measure_memory(model, inputs=(x,)) as memory:
        add_proximal_gradient(parameters, starts, 0.5)
    assert memory.peak_bytes == 0
