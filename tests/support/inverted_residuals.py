"""Small networks of inverted residuals, with statistics and shifts that make every part count."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact

ACTIVATIONS = {
    "relu6": nn.ReLU6, "relu": nn.ReLU, "none": nn.Identity, "hardswish": nn.Hardswish, "silu": nn.SiLU, "gelu": nn.GELU,
}  # fmt: skip


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise, project; the input is added where shapes agree. expanded: 0 for no expansion."""

    def __init__(
        self, channels: int, expanded: int, out: int, kernel: int = 3, stride: int = 1, activation: str = "relu6",
        padding: int | None = None, dilation: int = 1, norm: bool = True, bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        wide, padding = expanded or channels, kernel // 2 * dilation if padding is None else padding
        act, common = ACTIVATIONS[activation], {"bias": bias}
        layers = [nn.Conv2d(channels, wide, 1, **common), norm_of(wide, norm), act()] if expanded else []
        layers += [nn.Conv2d(wide, wide, kernel, stride, padding, dilation, wide, **common), norm_of(wide, norm), act()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(wide, out, 1, **common), norm_of(out, norm))
        self.residual = channels == out and stride == 1 and padding == kernel // 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def norm_of(channels: int, norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm else nn.Identity()


def network(*blocks: nn.Module, stem: int = 4, out: int = 6) -> nn.Module:
    """Return a stem of this many channels, the blocks, and a linear head on the last one's channels."""
    first = nn.Sequential(nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU6())
    return shaken(nn.Sequential(first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 3)))


def shaken(model: nn.Module) -> nn.Module:
    """Give the norms statistics, scales and shifts of their own, so that activations pass about half of the values."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.3, 1.0)
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.normal_(module.bias, 0.6, 0.4)
    return model


def small() -> nn.Module:
    """Return a network of four blocks: without expansion behind the stem, with a stride, a residual, another kernel."""
    return network(
        InvertedResidual(4, 0, 5), InvertedResidual(5, 10, 6, stride=2), InvertedResidual(6, 13, 6),
        InvertedResidual(6, 12, 6, kernel=5),
    )  # fmt: skip


def batch(examples: int = 2, pixels: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.rand(examples, 3, pixels, pixels, dtype=dtype) * 2 - 1, torch.arange(examples) % 3


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the loss's gradients of the trained parameters, by name, from one backward pass."""
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def plain_gradients(model: nn.Module, x: Tensor, y: Tensor, layers: int) -> dict[str, Tensor]:
    """Return plain autograd's gradients of the parameters that ``compress`` would train, norms in eval mode."""
    found = gradients(fedact.compress(model, "vanilla", layers=layers), x, y)
    fedact.restore(model).zero_grad()
    return found


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rtol: float = 1e-9) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert gradient.shape == wanted[name].shape
        assert float((gradient - wanted[name]).norm()) <= rtol * float(wanted[name].norm()) + 1e-12, name
