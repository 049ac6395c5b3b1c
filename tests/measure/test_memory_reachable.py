"""Nothing is hung where ledger and hooks are blind: a walk over all objects finds what they count, for every method."""

import torch
import torch.nn.functional as F
from torch import nn

import fedact
from fedact.nn.layers.base import ChannelNorm
from fedact.nn.surgery import states
from tests.support.laws import EVERY_SETTING
from tests.support.networks import MODELS, batch, measure, train
from tests.support.portions import rotated
from tests.support.reachable import held_storages, storages


def every_layer() -> nn.Module:
    """One of each layer that has a replacement."""
    activations = nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.Hardsigmoid(), nn.ReLU(), nn.LeakyReLU(), nn.ELU()
    blocks = [layer for activation in activations for layer in (nn.Conv2d(4, 4, 3, padding=1), activation)]
    rest = (
        nn.BatchNorm2d(4),
        ChannelNorm(4),
        nn.AvgPool2d(2),
        nn.MaxPool2d(3, 1),
        nn.Dropout2d(),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1),
    )
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), *blocks, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5)
    )


@rotated(3, method=[*EVERY_SETTING, "exact:derive=2"], build=[*MODELS, every_layer])
def test_what_a_forward_pass_leaves_is_what_the_ledger_counts(build, method):
    torch.manual_seed(0)
    model, (x, y) = fedact.compress(build(), method, layers=2), batch(3)
    # A second step starts from states.
    for _ in range(2):
        model.zero_grad()
        measured = measure(model, lambda: F.cross_entropy(model(x), y), (x, y))
        loss = F.cross_entropy(model(x), y)
        saved, hung = held_storages(model, [loss], [x, y, loss])
        state = storages(states(model).values())
        assert not {place: size for place, size in hung.items() if place not in state}
        # What a step starts from is there beside what it makes.
        both = {**saved, **state}
        assert measured.saved_bytes == sum(both.values())
        assert measured.hidden_bytes == 0
        train(model, x, y)
