"""Gradients of convolutions with few output pixels are autograd's."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fedact.compression.operations import FEW, Convolution, has_few

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, torch.Tensor]:
    """Depthwise and pointwise ones on small images."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    if draw(st.booleans()):
        module = nn.Conv2d(
            4, 4, draw(PAIRS), draw(PAIRS), draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(PAIRS), groups=4
        )
    else:
        module = nn.Conv2d(4, 6, 1)
    x = torch.randn(draw(st.integers(1, 3)), 4, height, width, generator=torch.Generator().manual_seed(0))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(module.dilation, module.kernel_size, module.padding, strict=True)]  # type: ignore[arg-type]
    assume(height >= reach[0] and width >= reach[1])
    return module.to(memory_format=layout), x.contiguous(memory_format=layout)


@given(convolutions())
def test_gradients_are_autograds(drawn):
    module, x = drawn
    x.requires_grad_()
    y = module(x)
    assume(y[0, 0].numel() <= FEW)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    exact_x, exact_weight = torch.autograd.grad(y, (x, module.weight), grad)
    operation = Convolution.of(module)
    weight = module.weight.detach()
    torch.testing.assert_close(operation.forward(x.detach(), weight, module.bias), y)
    assert has_few(grad)
    torch.testing.assert_close(operation.weight_gradient(x.detach(), grad, weight), exact_weight)
    torch.testing.assert_close(operation.input_gradient(x.shape, grad, weight), exact_x)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3)])
def test_many_pixels_and_no_images_go_to_the_library(shape):
    assert not has_few(torch.zeros(shape))
