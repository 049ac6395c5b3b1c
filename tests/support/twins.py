"""A small network, and plain PyTorch's gradients of what it trains."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.nn.surgery import trained_parameters
from tests.support.laws import relative_error

X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(),
        nn.Linear(256, 5),
    )  # fmt: skip


def plain_of(model: nn.Module) -> nn.Module:
    """Return plain PyTorch's model in eval mode, with the same weights trained."""
    plain = fedact.restore(copy.deepcopy(model)).eval()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return plain


def gradients(model: nn.Module, x: Tensor = X) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), Y[: len(x)]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_trains_as_plain(model: nn.Module, x: Tensor = X) -> None:
    expected, actual = gradients(plain_of(model), x), gradients(model, x)
    assert actual.keys() == expected.keys() == trained_parameters(model).keys()
    assert all(relative_error(actual[name], expected[name]) < 1e-4 for name in expected)
