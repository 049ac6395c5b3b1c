"""The loss of every pixel: its lean form is the plain one, holds far less, and parts of a batch add up."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedact.data import VOID
from fedact.measure.memory import measure_memory
from fedact.models.pixel_loss import pixel_loss, scaled_up
from tests.support.portions import examples

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def made(examples, classes, low, high, seed, void=0.2):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(examples, classes, *low, generator=random, dtype=torch.float64)
    masks = torch.randint(classes, (examples, *high), generator=random)
    masks[torch.rand(masks.shape, generator=random) < void] = VOID
    return scores.requires_grad_(), masks


@examples(60)
@given(st.integers(1, 3), st.integers(1, 5), sizes, sizes, st.integers(0, 2**16))
def test_the_lean_loss_and_its_gradient_are_the_plain_ones(examples, classes, low, high, seed):
    scores, masks = made(examples, classes, low, high, seed)
    plain, lean = pixel_loss(scores, masks), pixel_loss.lean(scores, masks)
    assert torch.allclose(plain, lean, rtol=1e-9, atol=1e-12)
    (expected,), (found,) = (torch.autograd.grad(3 * value, scores) for value in (plain, lean))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_scores_of_any_type_have_the_loss_of_their_values_and_its_gradient(dtype, autocast):
    """In float16 a sum over these pixels is infinite, in bfloat16 it has two digits."""
    scores, masks = made(1, 5, (8, 8), (320, 320), 0)
    scores = scores.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = pixel_loss.lean(scores, masks)
    exact = scores.detach().double().requires_grad_()
    expected = pixel_loss(exact, masks)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.mul(1000).backward()
    expected.mul(1000).backward()
    assert scores.grad.dtype == dtype
    assert torch.allclose(scores.grad.double(), exact.grad, rtol=max(2 * torch.finfo(dtype).eps, 1e-5), atol=1e-5)


def test_bands_of_large_masks_join(monkeypatch):
    scores, masks = made(2, 4, (6, 8), (48, 64), 1)
    whole = torch.autograd.grad(pixel_loss.lean(scores, masks), scores)[0]
    monkeypatch.setattr("fedact.models.pixel_loss.PIXELS_AT_ONCE", 5 * 64)
    assert torch.allclose(torch.autograd.grad(pixel_loss.lean(scores, masks), scores)[0], whole)


def test_without_void_it_is_torchs_cross_entropy_of_scaled_scores():
    scores, masks = made(2, 3, (4, 5), (12, 15), 0, void=0)
    assert torch.allclose(pixel_loss(scores, masks), F.cross_entropy(scaled_up(scores, (12, 15)), masks))


def test_parts_of_a_batch_add_up_whatever_is_void_in_them():
    scores, masks = made(4, 3, (4, 5), (12, 15), 2)
    masks[1] = VOID
    whole = pixel_loss.lean(scores, masks)
    parts = [pixel_loss.lean(scores[place : place + 1], masks[place : place + 1]) / 4 for place in range(4)]
    assert torch.allclose(whole, sum(parts))


@pytest.mark.parametrize("loss", [pixel_loss, pixel_loss.lean])
def test_a_batch_of_nothing_but_void_teaches_nothing(loss):
    scores, masks = made(2, 3, (4, 5), (12, 15), 0)
    value = loss(scores, torch.full_like(masks, VOID))
    assert value == 0
    assert not torch.autograd.grad(value, scores)[0].any()


def test_the_lean_loss_holds_its_gradient_alone():
    model, x = nn.Conv2d(3, 11, 1), torch.randn(2, 3, 30, 40)
    masks = torch.randint(11, (2, 240, 320))
    held = {}
    for name, loss in (("plain", pixel_loss), ("lean", pixel_loss.lean)):
        with measure_memory(model, inputs=(x, masks)) as memory:
            loss(model(x), masks).backward()
        held[name] = memory
    # A plain step holds the logarithms and what the loss scaled them by; a convolution's input is the image itself.
    assert held["lean"].saved_bytes == 2 * 11 * 30 * 40 * 4
    assert held["plain"].saved_bytes >= 2 * 11 * 240 * 320 * 4
    assert held["lean"].peak_bytes < held["plain"].peak_bytes / 5
    assert not held["lean"].hidden_bytes
