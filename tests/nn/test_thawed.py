"""What is thawed, frozen, replaced or put in after ``compress`` gets plain gradients, and is left alone by ``restore``."""

import pytest
from torch import nn

import fedact
from tests.support.networks import chunked
from tests.support.twins import X, assert_trains_as_plain, build

METHODS = ["vanilla", "exact", "exact:derive=2", "checkpoint", "hosvd:variance=1.0"]


def thaw_biases(model):
    for index in (0, 3, 6):
        model[index].bias.requires_grad_(True)


def thaw_a_weight(model):
    model[0].weight.requires_grad_(True)


def thaw_a_norm(model):
    model[1].requires_grad_(True)


def thaw_a_norms_shift(model):
    model[4].bias.requires_grad_(True)


def thaw_all(model):
    model.requires_grad_(True)


def freeze_a_trained_layer(model):
    model[6].requires_grad_(False)


def freeze_a_trained_weight(model):
    model[9].weight.requires_grad_(False)


def freeze_the_head(model):
    model[11].requires_grad_(False)


def replace_a_weight(model):
    model[3].weight = nn.Parameter(2 * model[3].weight.detach())


def replace_a_trained_layer(model):
    model[6] = nn.Conv2d(6, 6, 1)


def replace_a_source(model):
    model[3] = nn.Conv2d(4, 6, 1)


def replace_an_activation(model):
    model[5] = nn.Tanh()


def replace_the_head(model):
    model[11] = nn.Sequential(nn.Linear(256, 6), nn.Linear(6, 5))


def append_a_layer(model):
    model.append(nn.Linear(5, 5))


CHANGES = [
    thaw_biases, thaw_a_weight, thaw_a_norm, thaw_a_norms_shift, thaw_all, freeze_a_trained_layer, freeze_a_trained_weight,
    freeze_the_head, replace_a_weight, replace_a_trained_layer, replace_a_source, replace_an_activation, replace_the_head,
    append_a_layer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("text", METHODS)
def test_what_is_thawed_frozen_or_put_in_after_compress_gets_plain_gradients(text, change):
    model = fedact.compress(build(), text, layers=2)
    change(model)
    assert_trains_as_plain(model)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_with_the_frozen_part_in_chunks_too(change):
    model = chunked(build(), 2, layers=2)
    model(X)
    change(model)
    assert_trains_as_plain(model)


def test_restore_freezes_and_thaws_what_it_knew_and_leaves_the_rest():
    model = build()
    model[0].requires_grad_(False)
    fedact.compress(model, "exact", layers=1)
    replace_the_head(model)
    model[3].weight = nn.Parameter(model[3].weight.detach())
    model[0].bias.requires_grad_(True)
    model[11][0].bias.requires_grad_(False)
    fedact.restore(model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"0.weight", "0.bias", "11.0.bias"}


def test_a_part_is_restored_alone():
    model = fedact.compress(build(), "exact", layers=1)
    fedact.restore(model[0])
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight.requires_grad
    assert not model[3].weight.requires_grad
