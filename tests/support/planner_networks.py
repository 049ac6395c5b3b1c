"""Networks so small that every plan for them can be tried."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def first() -> list[nn.Module]:
    """Return layers whose output is smaller than the raw images, which would be kept for nothing in its place."""
    return [nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU6()]


def last(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


def one_convolution() -> nn.Module:
    return nn.Sequential(*first(), nn.Conv2d(4, 6, 3), nn.ReLU(), *last(6))


def depthwise() -> nn.Module:
    widening = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
    return nn.Sequential(*first(), *widening, nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1), *last(4))


def smooth() -> nn.Module:
    return nn.Sequential(*first(), nn.Conv2d(4, 4, 3), nn.Hardswish(), nn.Conv2d(4, 6, 1), *last(6))


class Branches(nn.Module):
    """The same tensor feeds two trained convolutions and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Sequential(*first()), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Sequential(*last(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.left(x) + F.relu(self.right(x)))


NETWORKS = {
    "one convolution": (one_convolution, 1),
    "depthwise": (depthwise, 3),
    "smooth": (smooth, 2),
    "branches": (Branches, 2),
}
"""Each with how many convolutions are trained; two to four tensors are kept."""
EXAMPLES, RESOLUTION = 4, 24


@cache
def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name][0]()


def example() -> tuple[Tensor, Tensor]:
    """Return images of a few waves, so that there is something to compress."""
    generator = torch.Generator().manual_seed(0)
    places, waves = torch.linspace(0, 6, RESOLUTION), torch.rand(EXAMPLES, 3, 2, generator=generator)
    rows, columns = (torch.sin(places * each[..., None] * 4) for each in waves.unbind(-1))
    x = rows[..., :, None] * columns[..., None, :] + 0.5 * torch.randn(
        EXAMPLES, 3, RESOLUTION, RESOLUTION, generator=generator
    )
    return x, torch.arange(EXAMPLES)
