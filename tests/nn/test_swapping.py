"""Memory-saving layers beside others' classes: parametrized, pruned, subclassed; copied, pickled, and plain again."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune, skip_init
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torchvision import models

import fedact
from fedact.nn.surgery import trained_parameters
from tests.support.laws import relative_error
from tests.support.networks import chunked
from tests.support.twins import X, assert_trains_as_plain, build, gradients

METHODS = ["vanilla", "exact", "exact:derive=2", "checkpoint", "hosvd:variance=1.0"]

OVERLAYS = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:not compressed")
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("layer", [0, 3, 9])
@pytest.mark.parametrize("text", METHODS)
def test_an_overlay_put_on_after_compress_trains_and_is_left_by_restore(text, layer, overlay):
    model, expected = build(), build()
    fedact.compress(model, text, layers=2)
    for module in (model[layer], expected[layer]):
        torch.manual_seed(1)
        OVERLAYS[overlay](module)
    expected.eval()
    model.eval()
    assert torch.allclose(model(X), expected(X), atol=1e-5)
    names = trained_parameters(model)
    actual = gradients(model)
    assert actual.keys() == names.keys()
    theirs = gradients(expected)
    assert all(relative_error(actual[name], theirs[name]) < 1e-4 for name in actual)
    fedact.restore(model)
    assert [type(module).__name__ for module in model.modules()] == [type(module).__name__ for module in expected.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.allclose(model(X), expected(X), atol=1e-5)
    assert list(model.state_dict()) == list(expected.state_dict())


@pytest.mark.parametrize("train", [True, False])
def test_a_spectral_norm_takes_one_step_a_forward_pass(train):
    model, plain = build().train(train), build().train(train)
    fedact.compress(model, "exact", layers=1)
    for index in (0, 3, 9, 11):
        for network in (model, plain):
            torch.manual_seed(index)
            spectral_norm(network[index])
    model(X)
    plain(X)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert ours.shape[:1] in {(4,), (6,), ()} or torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:not compressed")
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("index", [0, 3, 6, 9, 11])
@pytest.mark.parametrize("text", ["transform", "exact:derive=2", "checkpoint"])
def test_a_parametrized_layer_beside_others_trains_as_plain(text, index, layers):
    model = build()
    weight_norm(model[index])
    kind = type(model[index])
    fedact.compress(model, text, layers)
    if text == "transform":
        gradients(model)
    else:
        assert_trains_as_plain(model)
    assert type(fedact.restore(model)[index]) is kind


class Doubled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Slotted(nn.ReLU):
    __slots__ = ("note",)

    def __getattr__(self, name):
        return 1 if name == "one" else super().__getattr__(name)


class Borrowing(nn.Module):
    """Reads a convolution's weight without calling it, and calls a shared one twice."""

    def __init__(self):
        super().__init__()
        self.borrowed, self.shared, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x):
        x = F.conv2d(x, self.borrowed.weight, self.borrowed.bias)
        return self.head(self.shared(F.relu(self.shared(x))).mean((2, 3)))


def odd() -> nn.Module:
    made = skip_init(nn.Conv2d, 4, 4, 3)
    nn.init.ones_(made.weight)
    nn.init.ones_(made.bias)
    return nn.Sequential(Doubled(3, 4, 3), Slotted(), made, nn.RReLU(), nn.AlphaDropout(), nn.Flatten(), nn.Linear(64, 5))


def parametrized() -> nn.Module:
    model = build()
    weight_norm(model[3])
    prune.l1_unstructured(model[9], "weight", 0.5)
    return model


SMALL = {"width_mult": 0.25}
NETWORKS = {
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=4, **SMALL),
    "mobilenet_v3": lambda: models.mobilenet_v3_small(num_classes=4, **SMALL),
    "mnasnet": lambda: models.MNASNet(0.35, num_classes=4),
    "shufflenet": lambda: models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 32], num_classes=4),
    "squeezenet": lambda: models.squeezenet1_1(num_classes=4),
    "resnet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4),
    "densenet": lambda: models.DenseNet(4, (2, 2), 8, num_classes=4, drop_rate=0.1),
    "googlenet": lambda: models.GoogLeNet(num_classes=4, aux_logits=False, init_weights=False),
    "efficientnet": lambda: models.EfficientNet(
        [models.efficientnet.MBConvConfig(2, 3, 1, 8, 8, 2, 0.25, 0.5)], 0.2, num_classes=4
    ),
    "convnext": lambda: models.ConvNeXt([models.convnext.CNBlockConfig(8, None, 2)], 0.5, num_classes=4),
    "regnet": lambda: models.RegNet(models.regnet.BlockParams.from_init_params(2, 8, 8.0, 2.0, 8), num_classes=4),
    "odd": odd, "parametrized": parametrized, "borrowing": Borrowing, "plain": build,
}  # fmt: skip


def description(model: nn.Module):
    """Return all that restore must put back: classes, settings, hooks, weights' names, order and flags."""
    modules = [(name, type(module), module.training, sorted(vars(module))) for name, module in model.named_modules()]
    hooks = [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()]
    flags = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
    return modules, hooks, [(name, id(parameter), flag) for name, parameter, flag in flags], list(model.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_restore_gives_back_the_very_model(name):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place % 3 > 0)
    for place, module in enumerate(model.modules()):
        module.training = place % 2 > 0
        module.register_forward_hook(lambda *_: None)
    before, text = description(model), repr(model)
    for method in ("vanilla", "exact:derive=3", "checkpoint", "transform"):
        fedact.compress(model, method, layers=2)
        assert list(model.state_dict()) == before[3]
        assert all(isinstance(module, kind) for (_, kind, *_), module in zip(before[0], model.modules(), strict=True))
        assert repr(model).count("\n") == text.count("\n")
        fedact.restore(model)
        assert description(model) == before
        assert repr(model) == text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "parametrized"])
def test_a_compressed_network_can_be_copied_and_pickled(name):
    torch.manual_seed(0)
    model = fedact.compress(NETWORKS[name](), "exact", layers=2)
    x = torch.randn(2, 3, *(2 * [8 if name in ("odd", "plain") else 48]))
    model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
        assert torch.allclose(twin.eval()(x), model.eval()(x), atol=1e-6)
        fedact.restore(twin)
        assert type(twin) is type(fedact.restore(copy.deepcopy(model)))


def test_a_network_with_its_prefix_in_chunks_can_be_copied_and_pickled():
    model = chunked(build(), 2, layers=2)
    model(X)
    expected = gradients(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        actual = gradients(twin)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        assert type(fedact.restore(twin)) is nn.Sequential
