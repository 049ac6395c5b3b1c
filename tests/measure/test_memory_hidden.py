"""What hooks cannot see."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.networks import measure


class Double(torch.autograd.Function):
    """y = 2x, which hangs 400 bytes on ctx, or on what ``where`` says."""

    @staticmethod
    def forward(ctx, x, where):
        kept = torch.ones(100)
        where(ctx, kept)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2, None


class Secret(nn.Module):
    """A layer that keeps 400 bytes for itself."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "ctx":
            return Double.apply(x, lambda ctx, kept: setattr(ctx, "secret", kept))
        kept = torch.ones(100)
        if self.where == "attribute":
            self.kept = kept
            return x * 2
        y = x * 2
        y.register_hook(lambda grad: grad * kept.sum())
        return y


@pytest.mark.parametrize("where", ["ctx", "attribute", "closure"])
def test_a_tensor_hung_where_hooks_are_blind_is_counted_as_hidden(where):
    model, x = nn.Sequential(nn.Linear(4, 4), Secret(where)), torch.randn(2, 4)
    base = measure(model[:1], lambda: model[0](x).sum().backward(), x)
    memory = measure(model, lambda: model(x).sum().backward(), x)
    assert (memory.hidden_bytes, memory.saved_bytes) == (400, base.saved_bytes + 400)
    assert memory.by_layer["1"] == 400
    assert memory.peak_bytes >= memory.saved_bytes


class MaskedSum(torch.autograd.Function):
    """A loss that hangs a mask on ctx."""

    @staticmethod
    def forward(ctx, x):
        ctx.mask = x > 0
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.mask


def test_a_tensor_that_a_loss_outside_of_every_module_hangs_on_ctx_is_counted():
    model, x = nn.Linear(4, 30), torch.randn(10, 4)
    memory = measure(model, lambda: MaskedSum.apply(model(x)).backward(), x)
    assert (memory.saved_bytes, memory.hidden_bytes) == (300, 300)


class Elsewhere(nn.Module):
    """Keeps copies of what autograd packs, under hooks of its own."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone() + 0, lambda t: t):
            return self.inside(x)


def test_a_copy_packed_by_nested_hooks_is_counted_as_hidden():
    model, x = nn.Sequential(nn.Linear(4, 8), Elsewhere(nn.Sigmoid())), torch.randn(5, 4)
    memory = measure(model, lambda: model(x).sum().backward(), x)
    assert (memory.saved_bytes, memory.hidden_bytes) == (160, 160)


class Checkpointed(nn.Module):
    def __init__(self, inside: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inside, self.reentrant = inside, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inside, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_recomputes_is_held_while_it_lives(reentrant):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 50), nn.Sigmoid(), nn.Linear(50, 4), nn.Sigmoid())
    first, x = nn.Linear(4, 4), torch.randn(10, 4)
    model = nn.Sequential(first, Checkpointed(block, reentrant))
    memory = measure(model, lambda: model(x).sum().backward(), x)
    recomputed = 10 * 4 * 4 + 10 * 50 * 4 + 10 * 4 * 4
    assert memory.saved_bytes >= recomputed, "the segment's input, and what its backward pass reads"
    assert memory.saved_bytes <= memory.peak_bytes
    assert memory.saved_bytes <= recomputed + 2 * 10 * 50 * 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_two_segments_holds_less_than_not_checkpointing(reentrant):
    def segment() -> nn.Module:
        return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Sigmoid())])

    parts, x = [nn.Linear(4, 8), segment(), segment(), segment()], torch.randn(10, 4)
    plainly = nn.Sequential(*parts)
    sparing = nn.Sequential(parts[0], *(Checkpointed(part, reentrant) for part in parts[1:]))
    kept = [measure(m, lambda m=m: m(x).sum().backward(), x).saved_bytes for m in (plainly, sparing)]
    assert 5 * 320 <= kept[1] < kept[0] == 13 * 320
