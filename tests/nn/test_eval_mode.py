"""Under every method batch norms are in eval mode and dropout is off; what has no weights yet is refused."""

import pytest
import torch
from torch import nn

import fedact
from fedact.nn.surgery import trained_parameters
from tests.support.twins import X, assert_trains_as_plain, build


@pytest.mark.parametrize("text", ["vanilla", "exact"])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("size", [4, 1, 0])
def test_every_batch_norm_is_in_eval_mode_for_any_number_of_examples(size, settings, text):
    torch.manual_seed(0)
    head = nn.Linear(64, 6), nn.BatchNorm1d(6, **settings), nn.ReLU(), nn.Linear(6, 5)
    body = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, **settings), nn.AvgPool2d(2), nn.Flatten()
    model = nn.Sequential(*body, *head)
    for norm in (model[2], model[6]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    fedact.compress(model.train(), text, layers=2)
    x = X[:size]
    before = [buffer.clone() for buffer in model.buffers()]
    if size:
        assert_trains_as_plain(model, x)
    else:
        model(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


@pytest.mark.parametrize("text", ["exact", "hosvd:variance=1.0"])
def test_a_trained_batch_norm_without_a_shift(text):
    model = build()
    model[7] = nn.BatchNorm2d(6, bias=False)
    fedact.compress(model, text, layers=2, train_norm=True)
    assert "7.weight" in trained_parameters(model)
    assert_trains_as_plain(model)


DROPOUTS = [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]


@pytest.mark.parametrize("text", ["vanilla", "exact"])
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_every_dropout_is_off(dropout, text):
    shape = {nn.Dropout1d: (4, 3, 8), nn.Dropout3d: (4, 3, 2, 2, 2)}.get(dropout, (4, 3, 8, 8))
    model = fedact.compress(nn.Sequential(nn.Conv2d(3, 3, 1), dropout(0.5), nn.Conv2d(3, 3, 1)), text, layers=1).train()
    x = torch.randn(shape)
    assert torch.equal(model[1](x), x)


def test_a_norm_of_images_still_refuses_other_tensors():
    model = fedact.compress(build(), "exact", layers=1)
    with pytest.raises(ValueError, match="expected 4D"):
        model[1](torch.randn(2, 4))


@pytest.mark.parametrize("text", ["vanilla", "exact"])
def test_lazy_layers_are_refused_before_their_first_input(text):
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(fedact.ConfigError, match=r"0 \(LazyConv2d\) has no weights"):
        fedact.compress(model, text, layers=1)
    model(X)
    assert list(trained_parameters(fedact.compress(model, text, layers=1))) == ["0.weight", "0.bias", "2.weight", "2.bias"]
