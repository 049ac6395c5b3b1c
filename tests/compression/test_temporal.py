"""Convolutions of series in every geometry against autograd, in double precision."""

from itertools import product

import pytest
import torch
from torch import nn

from fedact.compression.accumulation import add_weight_gradient
from fedact.compression.temporal import Convolution1d, convolution_of

SETTINGS = {
    "kernel_size": (1, 2, 3, 5),
    "stride": (1, 2, 3),
    "padding": (0, 2, "same", "valid"),
    "dilation": (1, 2),
    "groups": (1, 2, 4),
    "padding_mode": ("zeros", "reflect", "replicate", "circular"),
}
CASES = [
    case
    for case in (dict(zip(SETTINGS, values, strict=True)) for values in product(*SETTINGS.values()))
    if not (case["padding"] == "same" and case["stride"] > 1)
]


class Sum:
    def __init__(self, like: torch.Tensor) -> None:
        self.sum = torch.zeros_like(like)

    def tensor(self) -> torch.Tensor:
        return self.sum

    def add(self, gradient: torch.Tensor) -> None:
        self.sum += gradient


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("time", [11, 16])
def test_every_geometrys_output_and_gradients_are_autograds(time):
    torch.manual_seed(0)
    for case in CASES:
        module = nn.Conv1d(4, 8, **case).double()
        x = torch.randn(3, 4, time, dtype=torch.float64, requires_grad=True)
        y = module(x)
        grad = torch.randn_like(y)
        expected = torch.autograd.grad(y, (x, module.weight, module.bias), grad)
        operation, weight, given = Convolution1d.of(module), module.weight.detach(), x.detach()
        total = Sum(weight)
        add_weight_gradient(total, operation, given, grad, weight)
        found = (operation.input_gradient(x.shape, grad, weight), total.sum, operation.bias_gradient(grad))
        torch.testing.assert_close(operation.forward(given, weight, module.bias), y)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, case=case: f"{case}: {text}")
        torch.testing.assert_close(operation.weight_gradient(given, grad, weight), expected[1])


def test_what_is_no_convolution_of_series_or_pictures_is_refused():
    with pytest.raises(TypeError, match="Conv3d is no convolution"):
        convolution_of(nn.Conv3d(1, 1, 1))
