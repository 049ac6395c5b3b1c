"""A small network with everything a plan must cope with, and plans for it."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.config.plan import Plan
from fedact.measure.memory import Memory


class Net(nn.Module):
    """Batch norm, ReLU6, depthwise, and a residual connection where one tensor feeds two trained convolutions."""

    def __init__(self, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False, padding_mode=padding_mode)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU6()
        self.left, self.right = nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.act(self.norm(self.depthwise(x)))
        return self.head((self.left(x) + F.relu(self.right(x))).mean((2, 3)))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().train()


def batch(size: int, seed: int = 0, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Return images, of a few patterns only where a rank is given, and labels."""
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        x = torch.randn(size, 3, 8, 8, generator=generator)
    else:
        patterns = torch.randn(rank, 192, generator=generator)
        x = (torch.randn(size, rank, generator=generator) @ patterns).view(size, 3, 8, 8)
    return x, torch.randint(0, 4, (size,), generator=generator)


def step(model: nn.Module, x: Tensor, y: Tensor) -> Memory:
    with fedact.measure_memory(model, inputs=(x, y)) as memory:
        F.cross_entropy(model(x), y).backward()
    return memory


def in_scope(memory: Memory, scope: str) -> int:
    return memory.saved_bytes if scope == "saved" else memory.peak_bytes


@cache
def plan_for(budget, size=8, method="exact", layers="auto", scope="saved", **data) -> Plan:
    return fedact.make_plan(net(), budget, batch(size, **data), method, layers, scope)


def plan_row(**fields) -> dict:
    """Return a plan on paper as it stands in plans.json, with a name, a shape and a cap for each of ``kept``'s methods."""
    kept = [{"name": str(n), "shape": [2], "cap_bytes": 7, **each} for n, each in enumerate(fields.pop("kept", []))]
    named = {
        "method": "exact",
        "status": "ok",
        "scope": "saved",
        "fixed": True,
        "kept": kept,
        "batch_size": 8,
        "micro_batch": 2,
    }
    sizes = ("budget", "saved", "state", "peak", "paper", "vanilla_saved", "weight", "gradient", "optimizer")
    return {"layers": 3, **dict.fromkeys((f"{size}_bytes" for size in sizes), 7), **named, **fields}
