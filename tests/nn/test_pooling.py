"""Pooling that keeps no activation: autograd's own gradients, from a shape or from places in windows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedact.measure.memory import measure_memory
from fedact.nn.layers import SAVES_LESS
from fedact.nn.layers.pooling import Windows


def image(height: int, width: int, ties: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return (x.round() if ties else x).to(dtype)


def gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return y.detach(), x.grad


def check(module: nn.Module, x: Tensor) -> None:
    expected = gradient(module, x)
    module.__class__ = SAVES_LESS[type(module)]
    for ours, theirs in zip(gradient(module, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


MODULES = [
    nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d((3, 6)), nn.AdaptiveAvgPool2d((None, 2)),
    nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 3), ceil_mode=True), nn.AvgPool2d(3, 2, 1, False, False),
    nn.AvgPool2d(2, divisor_override=3), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((1, 3), 1),
    nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, 1, dilation=2), nn.MaxPool2d(5, 3, 2), nn.MaxPool2d(1),
    nn.MaxPool2d(8, 8, 4), nn.MaxPool2d([3, 2], [2, 1], [1, 0]), nn.MaxPool2d((3,)), nn.AvgPool2d([2, 3]),
    nn.AvgPool2d((2,)), nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((5, 3)), nn.AdaptiveMaxPool2d((None, 2)),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=str)
@pytest.mark.parametrize("size", [(9, 10), (12, 8)], ids=str)
def test_the_gradient_is_autograds(module, size):
    plain = type(module)
    try:
        check(module, image(*size))
        for x in (image(*size, ties=True), image(*size).contiguous(memory_format=torch.channels_last)):
            module.__class__ = plain
            check(module, x)
        module.__class__ = plain
        check(module, image(*size, dtype=torch.float64))
    finally:
        module.__class__ = plain


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    share=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil_mode=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_places_in_windows_tell_where_the_maxima_are(kernel, stride, dilation, share, ceil_mode, seed):
    padding = tuple(min(part, size // 2) for part, size in zip(share, kernel, strict=True))
    windows = Windows(kernel, stride, padding, dilation, ceil_mode)
    x = torch.randn(2, 2, 14, 11, generator=torch.Generator().manual_seed(seed))
    _, indices = windows.pool(x)
    places = windows.places(indices, 11)
    assert int(places.max()) < kernel[0] * kernel[1]
    assert torch.equal(windows.indices(places, 11), indices)


@pytest.mark.parametrize("module", [nn.MaxPool2d(17), nn.MaxPool2d(2, return_indices=True)], ids=str)
def test_what_a_byte_does_not_tell_is_left_to_autograd(module):
    x, plain = image(18, 18), type(module)
    expected = module(x)
    module.__class__ = SAVES_LESS[plain]
    actual = module(x.requires_grad_())
    pairs = zip(*(each if isinstance(each, tuple) else (each,) for each in (actual, expected)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.AdaptiveAvgPool2d(2), 0), (nn.AvgPool2d(2), 0), (nn.MaxPool2d(2), 2 * 3 * 30 // 4), (nn.MaxPool2d(3, 2, 1), 90),
        (nn.AdaptiveMaxPool2d((6, 5)), 180),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_kept_is_counted_by_hand(module, expected):
    """12 x 10 becomes 6 x 5: a place in a window of 4 takes 2 bits, in one of 9 takes 4, in the whole plane 8."""
    module.__class__ = SAVES_LESS[type(module)]
    model, x = nn.Sequential(nn.Identity(), module), image(12, 10).requires_grad_()
    with measure_memory(model, inputs=(x,)) as memory:
        model(x).sum().backward()
    assert (memory.saved_bytes, memory.hidden_bytes) == (expected, 0)


def test_an_image_without_a_batch_is_pooled_as_ever():
    for module in (nn.AdaptiveAvgPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2)):
        x = image(8, 8)[0].requires_grad_()
        expected = module(x)
        module.__class__ = SAVES_LESS[type(module)]
        assert torch.equal(module(x), expected)
