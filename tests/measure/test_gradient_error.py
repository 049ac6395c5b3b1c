"""The bench's bytes and gradient errors: the ledger's bytes, and bias and variance by their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedact
from fedact.measure.gradient_error import gradients, measure_draws, measure_gradient_errors, method_states, weight_error
from fedact.measure.methods import compressed_models
from fedact.measure.step import prefix_outputs
from tests.support.networks import MODELS, batch, measure, normed, train


def gradient_errors(names, count=2, draws=8, make=normed):
    torch.manual_seed(0)
    model, (warm_up, *batches) = make().eval(), (batch(6, seed) for seed in range(1 + count))
    models = compressed_models(model, ["vanilla", *names], 2)
    return dict(zip(names, measure_gradient_errors(models, models["vanilla"], warm_up, batches, draws)[1:], strict=True))


def test_bytes_are_the_ledgers_and_exact_methods_have_the_exact_gradient():
    found = gradient_errors(["vanilla", "exact", "quantize:bits=2", "hosvd:variance=0.5"][1:])
    torch.manual_seed(0)
    model, first = fedact.compress(normed(), "exact", layers=2), batch(6, 1)
    exact, few_bits, truncated = found.values()
    assert exact.saved_bytes == measure(model, lambda: train(model, *first), first).saved_bytes
    assert all(cosine == pytest.approx(1, abs=1e-6) for cosine in exact.cosine.values())
    assert all(error < 1e-9 for error in exact.error.values())
    assert all(0 < each.cosine["3.weight"] < 0.9999 for each in (few_bits, truncated))


def test_a_deterministic_method_has_no_variance_and_its_error_is_bias():
    for each in gradient_errors(
        ["hosvd:variance=0.5", "asi:variance=0.5", "lance:variance=0.5", "gradient_filter"]
    ).values():
        assert each.draws == 1
        assert set(each.variance.values()) == {0.0}
        assert each.error == each.bias
        assert each.bias["3.weight"] > 1e-3


def test_stochastic_rounding_has_variance_and_no_bias():
    draws = 200
    (each,) = gradient_errors(["quantize:bits=2"], count=1, draws=draws).values()
    assert each.draws == draws
    for weight, variance in each.variance.items():
        # The estimate's own deviation is at most variance * sqrt(2) / draws, for noise of one dimension.
        assert abs(each.bias[weight]) < 5 * variance * 2**0.5 / draws
        assert each.error[weight] == pytest.approx(variance, rel=0.1)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_mean_squared_error_is_bias_and_variance(draws, size, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, exact = torch.randn(draws, size, generator=generator), torch.randn(size, generator=generator)
    found = weight_error(list(ours), exact)
    assert found.bias + found.variance == pytest.approx(float((ours - exact).double().square().sum(1).mean()))
    assert found.squared_norm == pytest.approx(float(exact.square().sum()))


@pytest.mark.parametrize("method", ["quantize:bits=2", "hosvd:variance=0.5"])
def test_the_total_error_is_that_of_all_weights_as_one_vector(method):
    torch.manual_seed(0)
    model, warm_up, first = normed().eval(), batch(6), batch(6, 1)
    models = compressed_models(model, ["vanilla", method], 2)
    found = measure_gradient_errors(models, models["vanilla"], warm_up, [first])[1]
    exact = {name: g for name, g in gradients(models["vanilla"], first).items() if name.endswith("weight")}
    squares = {name: float(g.double().square().sum()) for name, g in exact.items()}
    expected = sum(found.error[name] * square for name, square in squares.items()) / sum(squares.values())
    assert found.total_error == pytest.approx(expected, rel=1e-5)


def test_draws_start_from_the_same_state_and_leave_it_as_one_step_does():
    torch.manual_seed(0)
    model, (warm_up, first) = normed().eval(), (batch(6), batch(6, 1))
    models = compressed_models(model, ["vanilla", "asi:variance=0.5"], 2)
    measure_gradient_errors(models, models["vanilla"], warm_up, [first], draws=3)
    alone = compressed_models(model, ["asi:variance=0.5"], 2)["asi:variance=0.5"]
    for x, y in (warm_up, first):
        train(alone, x, y)
    for ours, theirs in zip(method_states(models["asi:variance=0.5"]), method_states(alone), strict=True):
        pairs = [(ours[size].tensors, theirs[size].tensors) for size in theirs]
        assert all(torch.allclose(a, b, atol=1e-5) for first, second in pairs for a, b in zip(first, second, strict=True))


def test_the_model_is_left_plain():
    model = normed()
    kinds = [type(module) for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models = compressed_models(model, ["vanilla", "hosvd:variance=0.5"], 1)
    measure_gradient_errors(models, models["vanilla"], batch(2), [batch(2)])
    assert [type(module) for module in model.modules()] == kinds
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    # Buffers are each model's own: a forward pass may write to them.
    storages = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert all({name: p.data_ptr() for name, p in each.named_parameters()} == storages for each in models.values())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("method", ["vanilla", "exact", "checkpoint"])
def test_a_replayed_prefix_gives_the_same_gradient(make, method):
    torch.manual_seed(0)
    model = compressed_models(make().eval(), [method], 1)[method]
    whole = gradients(model, batch(3))
    prefix = prefix_outputs(model, batch(3)[0])
    replayed = gradients(model, batch(3), prefix)
    assert prefix
    assert whole.keys() == replayed.keys()
    assert all(torch.equal(whole[name], replayed[name]) for name in whole)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_micro_batches_add_up_to_the_batchs_gradient_and_hold_one_at_a_time(size):
    model = compressed_models(normed().eval(), ["exact"], 2)["exact"]
    examples = batch(5)
    whole, added = gradients(model, examples), gradients(model, examples, micro_batch=size)
    assert all(torch.allclose(added[name], whole[name], rtol=1e-4, atol=1e-6) for name in whole)
    memory, (drawn,) = measure_draws(model, examples, prefix_outputs(model, examples[0]), 1, 0, size)
    assert all(torch.equal(drawn[name], added[name]) for name in added)
    x, y = (each[:size].clone() for each in examples)
    assert memory.saved_bytes == measure(model, lambda: train(model, x, y), (x, y)).saved_bytes
