import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

import fedact
from fedact.compression.packing import pack_codes, unpack_codes
from tests.support.laws import relative_error


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 4),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_come_back_and_take_an_eighth(bits):
    packed = pack_codes(torch.tensor(bits, dtype=torch.uint8), 1)
    assert packed.nbytes == -(-len(bits) // 8)
    assert unpack_codes(packed, 1, len(bits)).tolist() == bits


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_exact_gives_vanillas_gradients(layers, training):
    x, y = torch.randn(5, 3, 9, 9), torch.tensor([0, 1, 2, 3, 0])
    model = network()
    expected = gradients(fedact.compress(model, "vanilla", layers=layers).train(training), x, y)
    actual = gradients(fedact.compress(model, "exact", layers=layers).train(training), x, y)
    assert actual.keys() == expected.keys()
    assert all(relative_error(actual[name], expected[name]) < 1e-5 for name in actual)


@pytest.mark.parametrize("build", [mobilenet_v2, resnet18])
def test_exact_gives_vanillas_gradients_on_torchvisions_networks(build):
    torch.manual_seed(0)
    model, x, y = build(num_classes=10), torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    expected = gradients(fedact.compress(model, "vanilla", layers=4), x, y)
    actual = gradients(fedact.compress(model, "exact", layers=4), x, y)
    assert len(actual) == 6
    assert all(relative_error(actual[name], expected[name]) < 1e-5 for name in actual)


def test_relus_pass_gradients_where_pytorchs_do_even_at_the_corners_and_at_nan():
    x = torch.tensor([-1.0, 0.0, 1e-9, 3.0, 6.0, 7.0, torch.nan])
    for plain in (nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True)):
        results = []
        for layer in (plain, fedact.compress(nn.Sequential(copy.deepcopy(plain), nn.Linear(7, 1)), "exact", layers=0)[0]):
            leaf = x.clone().requires_grad_()
            y = layer(leaf * 1.0)
            y.backward(torch.ones(7))
            results.append((y.detach(), leaf.grad))
        for plainly, wrapped in zip(*results, strict=True):
            assert torch.allclose(plainly, wrapped, rtol=0, atol=0, equal_nan=True)


def test_frozen_norm_and_dropout_ignore_training_mode_and_leave_the_statistics_alone():
    model = fedact.compress(network(), "exact", layers=2).train()
    x, before = torch.randn(4, 3, 9, 9), copy.deepcopy(model.state_dict())
    assert torch.equal(model(x), model.eval()(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_unbatched_images_go_through():
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(3, 8, 8)
    model = fedact.compress(nn.Sequential(copy.deepcopy(layer)), "hosvd:variance=1.0", layers=1)
    model(x).sum().backward()
    layer(x).sum().backward()
    assert relative_error(model[0].weight.grad, layer.weight.grad) < 1e-5


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_few_pixels_have_vanillas_outputs_and_gradients_with_operations_in_place_after(activation, layers, side):
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 5, 1, bias=False)]
    parts = [part for layer in convolutions for part in (layer, activation(inplace=True))]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(5 * side**2, 4)).eval()
    x, y, found = torch.randn(8, 3, side, side), torch.arange(8) % 4, {}
    for method in ("vanilla", "exact"):
        fedact.compress(model, method, layers)
        with torch.no_grad():
            output = model(x).clone()
        found[method] = {"output": output, **gradients(model, x, y)}
    assert all(relative_error(found["exact"][name], expected) < 1e-5 for name, expected in found["vanilla"].items())
