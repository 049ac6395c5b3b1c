"""A list of geometries, each with every method; the random ones are in test_methods.py."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from fedact.compression import make_method
from fedact.compression.lowrank.factor_gradient import factor_gradient
from fedact.compression.operations import Convolution
from fedact.measure.memory import stored_bytes
from fedact.nn.surgery import compress
from tests.support.laws import GENTLEST, LOSSY, relative_error
from tests.support.portions import rotated

GEOMETRIES: dict[str, dict[str, object]] = {
    "1x1": {"kernel_size": 1},
    "1x1, stride 2": {"kernel_size": 1, "stride": 2},
    "1x1, padded": {"kernel_size": 1, "padding": 1},
    "2x2, stride 2": {"kernel_size": 2, "stride": 2},
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3, valid": {"kernel_size": 3, "padding": "valid"},
    "3x3, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1},
    "3x3, stride 3 that leaves a rest": {"kernel_size": 3, "stride": 3},
    "3x3, dilation 2": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "3x3, stride 2, dilation 2": {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    "3x3, stride (2, 1), dilation (1, 2)": {"kernel_size": 3, "stride": (2, 1), "dilation": (1, 2)},
    "3x3, dilation 4": {"kernel_size": 3, "dilation": 4, "padding": 4},
    "3x3, dilation 12, larger than the image": {"kernel_size": 3, "dilation": 12, "padding": 12},
    "3x3, dilation 36, larger than the image": {"kernel_size": 3, "dilation": 36, "padding": 36},
    "5x5": {"kernel_size": 5, "padding": 2},
    "7x7": {"kernel_size": 7, "padding": 3},
    "7x7, stride 2": {"kernel_size": 7, "stride": 2, "padding": 3},
    "1x7": {"kernel_size": (1, 7), "padding": (0, 3)},
    "7x1, padding (3, 1)": {"kernel_size": (7, 1), "padding": (3, 1)},
    "padding (2, 0)": {"kernel_size": 3, "padding": (2, 0)},
    "same, odd kernel": {"kernel_size": 3, "padding": "same"},
    "same, even kernel (uneven padding)": {"kernel_size": 4, "padding": "same"},
    "same, 2x4, dilation (3, 1) (uneven padding)": {"kernel_size": (2, 4), "dilation": (3, 1), "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate, padding (2, 1)": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "replicate"},
    "circular, same, even kernel": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "reflect, stride 2, dilation 2": {
        "kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2, "padding_mode": "reflect"
    },
    "2 groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "3 groups of 1x1": {"kernel_size": 1, "groups": 3},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 6, "out_channels": 6},
    "depthwise, stride 2": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 6, "out_channels": 6},
    "depthwise, multiplier 2": {"kernel_size": 3, "padding": 1, "groups": 6, "out_channels": 12},
    "depthwise, replicate, dilation 2": {
        "kernel_size": 3, "dilation": 2, "padding": 2, "groups": 6, "out_channels": 6, "padding_mode": "replicate"
    },
    "without bias": {"kernel_size": 3, "bias": False},
}  # fmt: skip
METHODS = [*GENTLEST.values(), *LOSSY]

every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES)


def convolution(geometry: str) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"out_channels": 12, **GEOMETRIES[geometry]}
        return nn.Conv2d(6, **settings)


def image() -> Tensor:
    """An odd by an even number of positions."""
    return torch.randn(4, 6, 9, 10, generator=torch.Generator().manual_seed(1)).relu()


def weight_gradient(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y))
    return weight.grad


@rotated(5, text=METHODS, geometry=GEOMETRIES)
def test_weight_gradient_is_autograds_on_the_reconstruction(text, geometry):
    plain, x, method = convolution(geometry), image(), make_method(text)
    model = compress(nn.Sequential(copy.deepcopy(plain)), text, layers=1)
    actual = weight_gradient(model, x, model[0].weight)
    rebuilt = method.reconstruct(method.compress(x))
    assert relative_error(actual, weight_gradient(plain, rebuilt, plain.weight)) < 2e-5


@rotated(5, text=METHODS, geometry=["1x1", "3x3", "3x3, dilation 12, larger than the image", "7x7", "depthwise"])
def test_weight_gradient_on_the_maps_of_a_pyramid_is_autograds_on_the_reconstruction(text, geometry):
    method = make_method(text)
    for size, examples in product([(1, 1), (1, 2), (2, 2), (3, 3), (6, 6)], [1, 4]):
        plain = convolution(geometry)
        x = torch.randn(examples, 6, *size, generator=torch.Generator().manual_seed(1)).relu()
        model = compress(nn.Sequential(copy.deepcopy(plain)), text, layers=1)
        actual = weight_gradient(model, x, model[0].weight)
        expected = weight_gradient(plain, method.reconstruct(method.compress(x)), plain.weight)
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


# What published code gets wrong --------------------------------------------------------------------------------------------


@every_geometry
def test_the_papers_equation_holds(geometry):
    """Uneven padding, stride 2 with dilation 2, groups and multipliers, padding modes: the factors alone give it."""
    plain, method = convolution(geometry).double(), make_method("hosvd:variance=0.8")
    compressed = method.compress(image().double())
    grad = torch.randn(plain(image().double()).shape, generator=torch.Generator().manual_seed(2)).double()
    actual = factor_gradient(*method.parts(compressed), grad, plain.weight.detach(), Convolution.of(plain))
    plain(method.reconstruct(compressed)).backward(grad)
    assert relative_error(actual, plain.weight.grad) < 1e-12


@pytest.mark.parametrize("geometry", [name for name in GEOMETRIES if "group" in name or "depthwise" in name])
def test_a_grouped_convolution_is_trained(geometry):
    model = compress(nn.Sequential(convolution(geometry)), "hosvd:variance=0.8", layers=1)
    gradient = weight_gradient(model, image(), model[0].weight)
    assert gradient.flatten(1).norm(dim=1).min() > 0


@pytest.mark.parametrize("text", ["hosvd:variance=0.5", "svd:ranks=1", "asi:ranks=1x1x1x1", "lance:ranks=1x1x1"])
def test_no_truncated_factor_pins_the_whole_one(text):
    """``svd(...)[:, :k]`` keeps every column, and ``.contiguous()`` of a column of a column-major result copies nothing."""
    tensors, _, state = make_method(text).compress(image())
    assert stored_bytes([*tensors, *state.tensors]) == sum(tensor.nbytes for tensor in (*tensors, *state.tensors))


@pytest.mark.parametrize("channels", [1, 4, 24])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_pointwise_convolutions_may_skip_pixels_in_every_layout(channels, layout, padding_mode):
    generator = torch.Generator().manual_seed(channels)
    # Where oneDNN is asked, few channels in channels-last order come out wrong, or end the process.
    layer = nn.Conv2d(channels, 8, 1, stride=2, padding=int(padding_mode != "zeros"), padding_mode=padding_mode)
    x = torch.randn(32, channels, 32, 32, generator=generator).contiguous(memory_format=layout)
    grad_output = torch.randn(layer(x).shape, generator=generator)
    found = [Convolution.of(layer).weight_gradient(x, grad_output, layer.weight) for _ in range(10)]
    layer.double()(x.double().contiguous()).backward(grad_output.double())
    for each in found:
        assert torch.allclose(each.double(), layer.weight.grad, rtol=1e-4, atol=1e-4)
