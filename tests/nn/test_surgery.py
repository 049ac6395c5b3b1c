import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

import fedact
from fedact.config.errors import ConfigError
from fedact.nn.surgery import body_layers, convolutions, head, trained_layers, trained_parameters


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return mobilenet_v2(num_classes=10, width_mult=0.35)


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("method", ["vanilla", "exact", "hosvd:variance=0.8"])
def test_compress_trains_the_last_convolutions_and_the_head_and_keeps_every_name(model, method):
    keys = list(model.state_dict())
    assert fedact.compress(model, method, layers=2) is model
    assert list(model.state_dict()) == keys
    trained = ["features.17.conv.2.weight", "features.18.0.weight", "classifier.1.weight", "classifier.1.bias"]
    assert list(trained_parameters(model)) == trained


def test_restore_gives_the_plain_model_back(model):
    model.features[0].requires_grad_(False)
    before, plain = classes(model), [p.requires_grad for p in model.parameters()]
    fedact.restore(fedact.compress(model, "exact", layers=4))
    assert classes(model) == before
    assert [p.requires_grad for p in model.parameters()] == plain
    assert not any("fedact" in name or name == "method" for m in model.modules() for name in vars(m))


def test_compressing_twice_is_compressing_once_with_the_last_method(model):
    fedact.compress(fedact.compress(model, "exact", layers=6), "vanilla", layers=1)
    assert list(trained_parameters(model)) == ["features.18.0.weight", "classifier.1.weight", "classifier.1.bias"]
    assert all(p.requires_grad for p in fedact.restore(model).parameters())


def test_a_deep_copy_trains_alone_and_gives_the_same_gradient(model):
    fedact.compress(model, "hosvd:variance=0.9", layers=2)
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    twin(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    model(x).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*map(trained, (model, twin)), strict=True))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return list(trained_parameters(model).values())


def test_a_shared_convolution_is_wrapped_everywhere_and_adds_both_gradients():
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1)
    plain = nn.Sequential(shared, nn.ReLU(), shared)
    x, model = torch.randn(2, 4, 6, 6), fedact.compress(copy.deepcopy(plain), "exact", layers=1)
    assert model[0] is model[2]
    plain(x).sum().backward()
    model(x).sum().backward()
    assert torch.allclose(model[0].weight.grad, plain[0].weight.grad, rtol=1e-5, atol=1e-5)


def test_nothing_is_kept_without_gradients(model):
    fedact.compress(model, "exact", layers=4)
    with fedact.measure_memory(model) as memory, torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert memory.saved_bytes == 0


def test_a_trained_layer_that_cannot_be_wrapped_is_named_and_still_trained():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(4, 2, 3))
    with pytest.warns(UserWarning, match=r"1 \(Odd\)"):
        fedact.compress(model, "exact", layers=1)
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    assert model[1].weight.grad is not None


def test_layers_count_convolutions_from_the_end_in_definition_order(model):
    assert len(convolutions(model)) == 52
    assert head(model) == ["classifier.1"]
    assert trained_layers(model, 1) == ["features.18.0", "classifier.1"]
    assert trained_layers(model, 0) == ["classifier.1"]


@pytest.mark.parametrize("layers", [53, -1])
def test_more_layers_than_there_are_is_refused(model, layers):
    with pytest.raises(fedact.ConfigError, match="52 convolutions"):
        fedact.compress(model, "exact", layers=layers)


def test_a_plan_of_another_model_is_refused(model):
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    plan = fedact.make_plan(model, "512KB", (x, y), layers=1)
    with pytest.raises(fedact.ConfigError, match="does not have"):
        fedact.apply(nn.Sequential(nn.Conv2d(3, 3, 3)), plan)


def test_a_model_says_itself_which_convolution_is_its_head():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
    assert (convolutions(model), head(model)) == (["0", "2", "4"], [])
    model.head_name = "4"
    assert (convolutions(model), head(model)) == (["0", "2"], ["4"])
    assert trained_layers(model, 1) == ["2", "4"]
    assert list(trained_parameters(fedact.compress(model, "exact", layers=0))) == ["4.weight", "4.bias"]
    assert "head_name" not in model.state_dict()


def test_several_layers_may_be_the_head():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 5, 1))
    model.head_name = ("1", "2")
    assert trained_layers(model, 1) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["3", "0.weight", "1", ""])
def test_a_head_that_is_no_layer_is_refused(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1))
    model.head_name = name
    with pytest.raises(ConfigError, match=f"head_name is '{name}'"):
        fedact.compress(model, layers=1)


def test_a_network_of_linear_layers_is_trained_layer_by_layer():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert (convolutions(model), body_layers(model), head(model)) == ([], ["0", "2"], ["4"])
    assert trained_layers(model, 1) == ["2", "4"]
    with pytest.raises(fedact.ConfigError, match="the model has 2 layers: layers is at least 0"):
        trained_layers(model, 3)


@pytest.mark.parametrize(("linear", "counted"), [(1, 2), (2, 2), (3, 5)])
def test_linear_layers_count_where_they_are_more_than_the_convolutions(linear, counted):
    blocks = [module for _ in range(linear) for module in (nn.Linear(6, 6), nn.ReLU())]
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 6, 3), nn.Flatten(1, 2), *blocks, nn.Linear(6, 2))
    assert len(body_layers(model)) == counted


def test_a_convolution_of_series_counts_and_may_be_the_head():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 5, 1))
    assert trained_layers(model, 1) == ["4"]
    model.head_name = "4"
    assert trained_layers(model, 1) == ["2", "4"]
