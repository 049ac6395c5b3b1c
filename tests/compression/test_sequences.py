"""Tokens, series and pictures: the same numbers in another layer give the same gradient, straight from factors too."""

import copy

import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fedact
from fedact.compression import make_method
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.lowrank.layer_gradient import layer_gradient
from fedact.compression.matrix_product import MatrixProduct, channels_second
from fedact.compression.temporal import convolution_of
from fedact.config.errors import ConfigError
from fedact.laws.strategies import series, tokens
from tests.support.laws import LOSSY, relative_error
from tests.support.portions import examples

RANKS = st.tuples(*[st.integers(1, 6)] * 4)


def rebuilt(method: HOSVD, x: Tensor) -> Tensor:
    """tensorly's product of a core and factors."""
    core, factors = method.parts(method.compress(x))
    return torch.from_numpy(tensorly.tucker_to_tensor((core.numpy(), [factor.numpy() for factor in factors.values()])))


def autograds(layer: nn.Module, x: Tensor, grad_output: Tensor) -> Tensor:
    layer = copy.deepcopy(layer).double()
    layer(x).backward(grad_output)
    return layer.weight.grad


@given(case=series(), ranks=RANKS)
@examples(100)
def test_the_gradient_of_a_convolution_of_series_comes_from_its_factors(case, ranks):
    method, x, grad = HOSVD(ranks=ranks[:3]), case.x.double(), case.grad_output.double()
    parts = method.parts(method.compress(x))
    actual = layer_gradient(*parts, grad, case.layer.weight.detach().double(), convolution_of(case.layer), {})
    expected = autograds(case.layer, rebuilt(method, x), grad)
    assert (actual - expected).norm() <= 1e-10 * (1 + x.norm() * grad.norm())


@given(case=tokens(), ranks=RANKS)
@examples(100)
def test_the_gradient_of_a_linear_layer_on_tokens_comes_from_its_factors(case, ranks):
    x, grad = channels_second(case.x.double()), case.grad_output.double()
    method = HOSVD(ranks=ranks[: x.dim()])
    parts = method.parts(method.compress(x))
    weight = case.layer.weight.detach().double()
    actual = layer_gradient(*parts, channels_second(grad), weight, MatrixProduct(channels=1), {})
    expected = autograds(case.layer, rebuilt(method, x).movedim(1, -1), grad)
    assert (actual - expected).norm() <= 1e-10 * (1 + x.norm() * grad.norm())


def smooth(shape: tuple[int, ...]) -> Tensor:
    """Noise whose neighbours and channels are alike."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).cumsum(2)
    return noise * torch.logspace(0, -1, shape[1]).view(1, -1, *[1] * (len(shape) - 2))


def gradients(layer: nn.Module, x: Tensor, grad_output: Tensor, text: str) -> tuple[Tensor, Tensor]:
    """Input and weight gradient of a layer in the body of a network."""
    model = fedact.compress(nn.Sequential(copy.deepcopy(layer), nn.Linear(1, 1)), text, layers=1)
    x = x.clone().requires_grad_()
    model[0](x).backward(grad_output)
    return x.grad, model[0].weight.grad.flatten(1)


@pytest.mark.parametrize("text", [text for text in LOSSY if "ranks" not in text])
def test_tokens_series_and_pictures_of_the_same_numbers_have_the_same_gradients(text):
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    linear, of_series, of_pictures = (
        nn.Linear(6, 5, bias=False),
        nn.Conv1d(6, 5, 1, bias=False),
        nn.Conv2d(6, 5, 1, bias=False),
    )
    for layer in (linear, of_series, of_pictures):
        layer.weight.data = weight.view(layer.weight.shape).clone()
    for other, positions in ((of_series, (18,)), (of_pictures, (6, 4))):
        x, grad = smooth((4, 6, *positions)), smooth((4, 5, *positions))
        of_input, of_weight = gradients(other, x, grad, text)
        on_tokens = gradients(linear, x.movedim(1, -1).contiguous(), grad.movedim(1, -1).contiguous(), text)
        assert relative_error(channels_second(on_tokens[0]), of_input) < 1e-5
        assert relative_error(on_tokens[1], of_weight) < 1e-4


@pytest.mark.parametrize("positions", [1000, 1021])
def test_a_long_series_is_transformed_in_rows_or_whole(positions):
    x, method = smooth((3, 4, positions)), make_method("transform:bits=16")
    assert relative_error(method.reconstruct(method.compress(x)), x) < 1e-3


def test_ranks_for_other_tensors_are_refused():
    with pytest.raises(ConfigError, match="other tensors than those of series or tokens"):
        fedact.compress(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(4, 2)), "hosvd:ranks=1x2x2x2", layers=1)
