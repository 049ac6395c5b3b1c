"""Small networks, batches and one measured step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.compression import make_method
from fedact.measure.memory import Memory
from fedact.nn.layers import CodecLayer
from fedact.nn.surgery import assign, install, restore, smooth_activations, trained_layers


def measure(model: nn.Module, step: Callable[[], object], inputs: object = (), optimizer=None) -> Memory:
    with fedact.measure_memory(model, inputs=inputs, optimizer=optimizer) as memory:
        step()
    return memory


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    F.cross_entropy(model(x), y).backward()


def chunked(model: nn.Module, chunk: int, method: str = "exact", layers: int = 4, train_norm: bool = False) -> nn.Module:
    """Do what ``compress`` does, with the frozen part on ``chunk`` examples at a time."""
    names = trained_layers(restore(model), layers, train_norm) + smooth_activations(model)
    return install(model, assign(model, names, make_method(method)), prefix_chunk=chunk)


def tiled(model: nn.Module, tiles: int, chunk: int = 0, layers: int = 4, room: int | None = None) -> nn.Module:
    """Do what ``compress`` does, with the frozen part in tiles."""
    names = trained_layers(restore(model), layers, False) + smooth_activations(model)
    return install(model, assign(model, names, make_method("exact")), prefix_chunk=chunk, room=room, tiles=tiles)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)
    )


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True),
        nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU6(inplace=True),
        nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """The same tensor feeds two trained convolutions and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head((x + self.left(x) * self.right(x)).mean((2, 3)))


def shared() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(256, 5))


MODELS = [plain, normed, Residual, shared]


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def packed_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """What autograd packs in one forward pass, by itself, and states; the parameters, buffers and inputs left out."""
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x, y)}
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.detach())
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)
    states = [t for module in model.modules() if isinstance(module, CodecLayer) for t in module.state_tensors()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*packed, *states)}
    del loss
    return sum(size for address, size in storages.items() if address not in given)
