"""Streams compute plain autograd's gradients: for every geometry, trained part and number of channels at a time."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

import fedact
from tests.support.inverted_residuals import (
    ACTIVATIONS,
    InvertedResidual,
    assert_close,
    batch,
    gradients,
    network,
    plain_gradients,
    small,
)


@st.composite
def blocks(draw):
    kernel = draw(st.sampled_from([1, 3, 5, 7]))
    return partial(
        InvertedResidual, draw(st.just(4)), draw(st.sampled_from([0, 5, 12])), draw(st.sampled_from([4, 6])), kernel,
        draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from(sorted(ACTIVATIONS))), draw(st.sampled_from([None, 0, 3])),
        draw(st.sampled_from([1, 2])), draw(st.booleans()), draw(st.booleans()),
    )  # fmt: skip


@given(blocks(), st.integers(1, 5), st.integers(1, 20_000), st.integers(1, 3), st.integers(0, 2**31))
def test_any_block_has_plain_autograds_gradients(block, layers, room, examples, seed):
    torch.manual_seed(seed)
    made = block()
    model = network(made, InvertedResidual(made.conv[-2].out_channels, 8, 6)).double()
    x, y = batch(examples, pixels=31)
    layers = min(layers, 6 if len(made.conv) > 5 else 5)
    want = plain_gradients(model, x, y, layers)
    assert_close(gradients(fedact.compress(model, "exact", layers=layers, room=room), x, y), want)


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("layers", range(13))
@pytest.mark.parametrize("room", [1, 3000, 10**9])
def test_every_depth_and_room_has_plain_autograds_gradients(layers, room, examples):
    torch.manual_seed(layers)
    model, (x, y) = small().double(), batch(examples)
    want = plain_gradients(model, x, y, layers)
    assert_close(gradients(fedact.compress(model, "exact", layers=layers, room=room), x, y), want)


def test_the_output_is_the_plain_models():
    torch.manual_seed(0)
    model, (x, _) = small().double().eval(), batch(3)
    want = model(x).detach()
    fedact.compress(model, "exact", layers=5, room=2000)
    torch.testing.assert_close(model(x).detach(), want)
    with torch.no_grad():
        torch.testing.assert_close(model(x), want)


def test_gradients_add_up_over_micro_batches_and_a_graph_run_twice():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(4)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000)
    for part in (slice(0, 1), slice(1, 4)):
        (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 4).backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, want)
    loss = F.cross_entropy(model(x), y)
    model.zero_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_close({name: p.grad / 2 for name, p in model.named_parameters() if p.grad is not None}, want)


def test_gradients_that_are_asked_for_otherwise_are_returned():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000)
    model.zero_grad()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(trained.values()))
    assert_close(dict(zip(trained, found, strict=True)), want)
    assert all(p.grad is None for p in trained.values())
    one = next(name for name in trained if name.startswith("2"))
    F.cross_entropy(model(x), y).backward(inputs=[trained[one]])
    assert_close({name: p.grad for name, p in trained.items() if p.grad is not None}, {one: want[one]})
    leaves = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
    doubled = {name: 1.0 * leaf for name, leaf in leaves.items()}
    F.cross_entropy(functional_call(model, doubled, (x,)), y).backward()
    assert_close({name: leaf.grad for name, leaf in leaves.items()}, want)


def test_hooks_on_weights_see_and_change_gradients():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000)
    weight, seen = model[2].conv[0].weight, []
    weight.register_hook(lambda gradient: 2 * gradient)
    other = model[3].conv[3].weight
    other.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    found = gradients(model, x, y)
    torch.testing.assert_close(found["2.conv.0.weight"], 2 * want["2.conv.0.weight"])
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], want["3.conv.3.weight"])


def test_second_derivatives_are_refused():
    model, (x, y) = small().double(), batch(2)
    fedact.compress(model, "exact", layers=12, room=2000)
    with pytest.raises(fedact.ConfigError, match="no second derivatives"):
        F.cross_entropy(model(x), y).backward(create_graph=True)


def test_the_input_has_its_gradient_and_frozen_blocks_pass_it_on():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    fedact.compress(model, "vanilla", layers=4)
    x.requires_grad_()
    (want,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    fedact.compress(model, "exact", layers=4, room=2000)
    (found,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    torch.testing.assert_close(found, want)


def test_channels_last_weights_and_inputs():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    model.to(memory_format=torch.channels_last)
    fedact.compress(model, "exact", layers=12, room=2000)
    assert_close(gradients(model, x.contiguous(memory_format=torch.channels_last), y), want)
