"""The limit lines against closed forms, and the weights of coefficients against weight gradients of single coefficients."""

from math import log2, pi

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedact.measure.equal_cosine import CapturedConvolution, capture
from fedact.measure.rate_distortion import (
    SCALAR_EXCESS,
    coefficient_energies,
    cosine_matrix,
    gradient_weights,
    limit_line,
    reverse_water_filling,
)
from tests.support.networks import batch, normed

GEOMETRIES = {
    "pointwise": {"kernel_size": 1},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    "dilated": {"kernel_size": 2, "dilation": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4},
    "grouped": {"kernel_size": 3, "groups": 2},
    "same": {"kernel_size": 2, "padding": "same"},
}


def captured(**geometry) -> CapturedConvolution:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, bias=False, **geometry), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.randn(3, 4, 6, 5, dtype=torch.float64), torch.tensor([0, 1, 2])
    module(x)
    (found,) = capture(module, (x, y), ["0"])
    return found


def test_the_gap_of_scalar_quantisation_is_gishs_and_pierces():
    assert pytest.approx(0.2546, abs=1e-4) == SCALAR_EXCESS


@given(st.floats(0.01, 100.0), st.floats(0.001, 1.0), st.integers(1, 50))
def test_equal_variances_have_the_closed_form(variance, share, count):
    # All coefficients alike: R = 1/2 log2(s^2 / D) each.
    distortion = share * variance
    point = reverse_water_filling(torch.full((count,), variance, dtype=torch.float64), distortion)
    assert point.distortion == pytest.approx(count * distortion)
    if share < 1:
        assert point.bits == pytest.approx(count / 2 * log2(variance / distortion), abs=1e-6)
        assert point.scalar_bits == pytest.approx(point.bits + 0.5 * log2(pi * 2.718281828459045 / 6) * count)


def test_what_lies_below_the_level_is_not_coded():
    point = reverse_water_filling(torch.tensor([8.0, 2.0, 0.5, 0.0]), 2.0)
    assert point == (1.0, 1.0 + SCALAR_EXCESS, 4.5)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_a_higher_level_takes_fewer_bits_and_leaves_more_error(energies):
    points = [reverse_water_filling(torch.tensor(energies), level) for level in (0.01, 0.1, 1.0, 10.0, 100.0)]
    assert [point.bits for point in points] == sorted((point.bits for point in points), reverse=True)
    assert [point.distortion for point in points] == sorted(point.distortion for point in points)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_weight_is_the_gradients_squared_error_for_an_error_of_one(geometry):
    layer = captured(**geometry)
    weights = gradient_weights(layer)
    rows, columns = cosine_matrix(6), cosine_matrix(5)
    for group, (u, v) in [(0, (0, 0)), (len(weights) - 1, (2, 1)), (0, (5, 4))]:
        errors = []
        for place in range(3):
            error = torch.zeros_like(layer.x)
            error[place, group * 4 // layer.operation.groups] = torch.outer(rows[u], columns[v])
            errors.append(layer.operation.weight_gradient(error, layer.grad_output, layer.weight).square().sum())
        assert float(weights[group, u, v]) == pytest.approx(float(torch.stack(errors).mean()))


def test_mean_squares_are_kept_by_the_transform():
    layer = captured(kernel_size=1)
    energies = coefficient_energies(layer) / gradient_weights(layer)[:, None]
    assert float(energies.sum()) == pytest.approx(float(layer.x.square().sum() / 3))


def test_a_linear_layer_is_a_pointwise_convolution():
    torch.manual_seed(0)
    model, (x, y) = normed().eval(), batch(4)
    name = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    (layer,) = capture(model, (x, y), [name])
    F.cross_entropy(model(x), y).backward()
    assert torch.allclose(layer.exact[..., 0, 0], model.get_submodule(name).weight.grad, atol=1e-6)


def test_a_line_falls_from_few_bytes_to_little_error():
    line = limit_line([captured(kernel_size=3), captured(kernel_size=1)])
    for column, falls in ((0, False), (1, False), (2, True)):
        values = [point[column] for point in line]
        assert values == sorted(values, reverse=falls)
    assert all(point.scalar_bytes >= point.gaussian_bytes for point in line)
    assert line[-1].error <= 1e-5
    # In micro-batches of a third, a third of the inputs is stored at once.
    third = limit_line([captured(kernel_size=3), captured(kernel_size=1)], share=1 / 3)
    assert third[-1].gaussian_bytes == pytest.approx(line[-1].gaussian_bytes / 3)
    assert third[-1].error == line[-1].error
