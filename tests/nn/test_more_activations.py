"""Activations of one bit an element, and padding and pooling of series, against autograd."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedact.nn.layers import SAVES_LESS, Swapped

PIECEWISE = [
    nn.LeakyReLU(0.2), nn.LeakyReLU(-0.3), nn.LeakyReLU(0.0, inplace=True), nn.PReLU(), nn.PReLU(4, init=0.1),
    nn.Hardtanh(-0.5, 1.5), nn.Hardtanh(inplace=True),
]  # fmt: skip
OF_SERIES = [
    nn.AdaptiveAvgPool1d(1), nn.AdaptiveAvgPool1d(5), nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1),
    nn.AvgPool1d(3, 2, 1, True, False), nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(3, 1, dilation=2),
    nn.MaxPool1d(4, 3, 2, ceil_mode=True), nn.ReflectionPad1d(2), nn.ReplicationPad1d((1, 3)),
]  # fmt: skip
OF_PICTURES = [nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d(2)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def backward(layer: nn.Module, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf * 1)
    (gradient,) = torch.autograd.grad(y, leaf, normal(*y.shape, seed=1), create_graph=create_graph)
    return y.detach(), gradient.detach()


def lean(layer: nn.Module) -> nn.Module:
    swapped = copy.deepcopy(layer).requires_grad_(False)
    swapped.__class__ = SAVES_LESS[type(layer)]
    return swapped


def check(layer: nn.Module, x: Tensor) -> None:
    plain = copy.deepcopy(layer).double().requires_grad_(False)
    for create_graph in (False, True):
        for ours, theirs in zip(backward(lean(plain), x, create_graph), backward(plain, x), strict=True):
            assert torch.equal(ours, theirs)


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(x.clone().requires_grad_() * 1)
    return sum(tensor.nbytes for tensor in saved if tensor.numel() > 1)


@pytest.mark.parametrize("layer", PIECEWISE, ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 7), (2, 4, 5, 6)], ids=str)
def test_a_bit_an_element_tells_the_slope(layer, shape):
    x = normal(*shape)
    x.view(-1)[:3] = torch.tensor([0.0, -0.5, 1.5])
    check(layer, x)
    if len(shape) == 4:
        check(layer, x.contiguous(memory_format=torch.channels_last))
    weights = sum(p.nbytes for p in layer.double().parameters())
    assert saved_bytes(lean(layer.double()), x) <= -(-x.numel() // 8) + weights


@pytest.mark.parametrize("layer", OF_SERIES, ids=str)
@pytest.mark.parametrize("time", [11, 16])
def test_series_are_pooled_and_padded_from_shapes_and_places(layer, time):
    x = normal(2, 3, time)
    check(layer, x)
    check(layer, x.round())
    assert saved_bytes(lean(layer), x) <= x.numel() // 2


@pytest.mark.parametrize("layer", OF_PICTURES, ids=str)
def test_pictures_are_padded_from_their_shape(layer):
    check(layer, normal(2, 3, 5, 6))
    assert saved_bytes(lean(layer), normal(2, 3, 5, 6)) == 0


def test_what_a_trained_slope_needs_is_left_to_autograd():
    layer = nn.PReLU(4).double()
    layer.__class__ = SAVES_LESS[nn.PReLU]
    layer(normal(2, 4, 3).requires_grad_()).sum().backward()
    assert layer.weight.grad is not None
    assert isinstance(layer, Swapped)
