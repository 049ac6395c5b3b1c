"""Trained batch norms and smooth activations against autograd, and the warnings about what is left."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.models import efficientnet_b0, mobilenet_v2, mobilenet_v3_small, resnet18

import fedact
from fedact.compression import make_method
from fedact.nn.surgery import calibrate, load_states, states
from tests.support.laws import ALONE, EVERY_SETTING, relative_error
from tests.support.networks import measure, packed_bytes, train
from tests.support.portions import rotated

every_setting = pytest.mark.parametrize("text", EVERY_SETTING)
every_setting_alone = pytest.mark.parametrize("text", dict.fromkeys(ALONE))
SMOOTH = [nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh")]
IN_PLACE = [nn.ReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.SiLU]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(5).eval()
    for place, tensor in enumerate((layer.running_mean, layer.weight.data, layer.bias.data)):
        tensor.copy_(normal(5, seed=place))
    layer.running_var.copy_(0.5 + normal(5, seed=3).abs())
    return layer


def wrapped(layer: nn.Module, text: str) -> nn.Module:
    """Return the layer as it is behind a convolution that is trained."""
    return fedact.compress(nn.Sequential(nn.Conv2d(5, 5, 1), layer), text, layers=1, train_norm=True)[1]


def backward(layer: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(grad)
    return y.detach(), leaf.grad


def seen(layer: nn.Module, text: str, x: Tensor) -> Tensor:
    """Return what the backward pass sees of x: the first step's reconstruction, with the layer's own seed."""
    method = make_method(text).for_dimensions(x.dim())
    return method.reconstruct(method.compress(x, method.start(layer.codec.seed if method.traits.saves_less else 0)))


@every_setting_alone
def test_a_trained_norm_is_autograds_with_its_input_as_the_method_shows_it(text):
    x, grad, plain = normal(4, 5, 6, 6).relu(), normal(4, 5, 6, 6, seed=1), norm()
    layer = wrapped(norm(), text)
    expected = seen(layer, text, x)
    y, grad_input = backward(layer, x, grad)
    plain_y, plain_input = backward(plain, x, grad)
    assert torch.equal(y, plain_y)
    assert relative_error(grad_input, plain_input) < 1e-6
    assert relative_error(layer.bias.grad, plain.bias.grad) < 1e-5
    plain.zero_grad()
    plain(expected).backward(grad)
    assert relative_error(layer.weight.grad, plain.weight.grad) < 1e-4


@rotated(4, text=dict.fromkeys(ALONE), plain=SMOOTH, shape=[(4, 5, 6, 6), (6, 10)])
def test_a_smooth_activation_has_the_slope_of_what_the_method_shows(text, plain, shape):
    x, grad, layer = normal(*shape), normal(*shape, seed=1), wrapped(copy.deepcopy(plain), text)
    expected = seen(layer, text, x)
    y, grad_input = backward(layer, x, grad)
    assert torch.equal(y, plain(x))
    assert relative_error(grad_input, backward(plain, expected, grad)[1]) < 1e-5


class Reading(nn.Module):
    """Reads a tensor again after an activation that may have changed it in place."""

    def __init__(self, act: nn.Module, discarding: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3)
        self.discarding = discarding

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.act(x)
        return self.last(x if self.discarding else x + y).mean((2, 3))


@pytest.mark.parametrize("act", IN_PLACE)
@pytest.mark.parametrize("discarding", [True, False])
@pytest.mark.parametrize("text", ["exact", "checkpoint", "hosvd:variance=1.0", "quantize:bits=8"])
def test_an_activation_in_place_changes_what_it_was_given(act, discarding, text):
    x, found = normal(2, 3, 8, 8), {}
    for name in ("vanilla", text):
        model = fedact.compress(Reading(act(inplace=True), discarding), name, layers=2)
        y = model(x)
        y.square().sum().backward()
        found[name] = y.detach(), model.first.weight.grad
    assert torch.equal(found[text][0], found["vanilla"][0])
    assert relative_error(found[text][1], found["vanilla"][1]) < 2e-2


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2, mobilenet_v3_small, efficientnet_b0])
@pytest.mark.parametrize("layers", [0, 1, 5])
@pytest.mark.filterwarnings("ignore:not compressed")
def test_torchvisions_networks_get_vanillas_gradients_with_trained_norms_and_fewer_bytes(build, layers):
    torch.manual_seed(0)
    model, batch, found = build(num_classes=4).eval(), (normal(2, 3, 32, 32), torch.tensor([0, 1])), {}
    for text in ("vanilla", "exact"):
        fedact.compress(model, text, layers, train_norm=True).zero_grad()
        memory = measure(model, lambda: train(model, *batch), batch)
        found[text] = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}, memory
    assert found["exact"][1].hidden_bytes == 0
    assert found["exact"][1].saved_bytes == packed_bytes(model, *batch) <= found["vanilla"][1].saved_bytes
    assert all(relative_error(g, found["vanilla"][0][name]) < 1e-4 for name, g in found["exact"][0].items())


def smooth_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Hardswish(),
        nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@pytest.mark.parametrize("text", ["exact", "hosvd", "asi", "lance", "quantize", "svd", "gradient_filter", "checkpoint"])
@pytest.mark.parametrize(("budget", "scope"), [(8000, "saved"), (12000, "peak")])
def test_a_plan_is_kept_to_at_every_step(text, budget, scope):
    example = normal(8, 3, 8, 8), torch.arange(8) % 4
    plan = fedact.make_plan(smooth_network(), budget, example, text, scope=scope, train_norm=True)
    model = fedact.apply(smooth_network(), plan)
    for seed in range(1, 4):
        x, y = seed * normal(plan.micro_batch, 3, 8, 8, seed=seed), torch.arange(plan.micro_batch) % 4
        memory = measure(model, lambda x=x, y=y: train(model, x, y), (x, y))
        assert max(memory.saved_bytes - plan.saved_bytes, memory.hidden_bytes) <= 0
        assert (memory.saved_bytes if scope == "saved" else memory.peak_bytes) <= budget


def test_random_branches_are_off_while_fine_tuning_like_dropout():
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        model = fedact.compress(efficientnet_b0(num_classes=4, stochastic_depth_prob=0.9), "exact", layers=4).train()
    x = normal(2, 3, 32, 32)
    assert torch.equal(model(x), model.eval()(x))


def test_the_state_of_an_activation_travels_like_a_convolutions():
    example = normal(4, 3, 8, 8), torch.arange(4)
    plan = fedact.make_plan(smooth_network(), None, example, "lance", layers=2)
    found = states(calibrate(fedact.apply(smooth_network(), plan), example[0]))
    loaded = states(load_states(fedact.apply(smooth_network(), plan), plan, found))
    assert found.keys() == loaded.keys()
    assert all(torch.equal(found[name], loaded[name]) for name in found)


def test_the_state_of_a_frozen_layer_whose_input_others_are_made_again_from_travels_too():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten()
    plain, x = nn.Sequential(*layers, nn.LazyLinear(4)), normal(4, 3, 8, 9)
    plain(x)
    plan = fedact.make_plan(plain, None, (x, torch.arange(4)), "lance:ranks=2x2x2,derive=1", layers=1)
    found = states(calibrate(fedact.apply(plain, plan), x))
    assert {name.rpartition("/")[0] for name in found} == {"2"}
    client = load_states(fedact.apply(copy.deepcopy(plain), plan), plan, found)
    # The server's bases, not those of the client's own first batch.
    calibrate(client, normal(4, 3, 8, 9, seed=1))
    assert all(torch.equal(found[name], tensor) for name, tensor in states(client).items())


def messages(model: nn.Module, layers: int = 1, text: str = "exact") -> str:
    with warnings.catch_warnings(record=True, action="always") as caught:
        fedact.compress(model, text, layers, train_norm=True)
    return "; ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2, mobilenet_v3_small])
def test_nothing_is_said_of_networks_that_are_wrapped_whole(build):
    assert messages(build(num_classes=4), 4) == ""


@pytest.mark.parametrize("empty", [nn.Sequential, nn.ModuleList, nn.ModuleDict])
def test_nothing_is_said_of_an_empty_shortcut(empty):
    assert messages(nn.Sequential(nn.Conv2d(3, 4, 3), empty())) == ""


@pytest.mark.parametrize("layer", [nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.ConstantPad2d(1, 0.0)], ids=str)
def test_nothing_is_said_of_layers_that_keep_nothing(layer):
    x = normal(1, 4, 8, 8).requires_grad_()
    assert measure(layer, lambda: layer(x).sum().backward()).saved_bytes == 0
    assert messages(nn.Sequential(nn.Conv2d(3, 4, 3), layer)) == ""


class Backwards(nn.Module):
    def __init__(self, early: nn.Module) -> None:
        super().__init__()
        self.early, self.conv = early, nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.early(self.conv(x))


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.LPPool2d(2, 2), nn.BatchNorm2d(4, track_running_stats=False)], ids=str)
def test_what_autograd_goes_on_keeping_is_named_wherever_it_is_defined(layer):
    assert f"1 ({type(layer).__name__})" in messages(nn.Sequential(nn.Conv2d(3, 4, 3), layer))
    assert f"early ({type(layer).__name__})" in messages(Backwards(layer))


@pytest.mark.parametrize("method", ["vanilla", "exact"])
@pytest.mark.parametrize("train_norm", [False, True])
def test_statistics_are_estimated_anew_in_a_plain_model_alone(method, train_norm):
    layers = nn.Conv2d(3, 5, 3), norm(), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2)
    model, images = nn.Sequential(*layers).eval(), normal(8, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    fedact.compress(model, method, layers=1, train_norm=train_norm)
    with pytest.raises(fedact.ConfigError, match=r"fedact\.restore\(model\) first"):
        update_bn([images], model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    update_bn([images], fedact.restore(model))
    outputs = model[0](images)
    torch.testing.assert_close(model[1].running_mean, outputs.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, outputs.transpose(0, 1).flatten(1).var(1))


class Calling(nn.Module):
    """Calls functions where it could call modules."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def twice(x: Tensor) -> Tensor:
    return F.gelu(F.gelu(x)).softmax(1) + 1


@pytest.mark.parametrize(
    ("function", "layers", "said"),
    [
        (twice, 2, "autograd keeps what they need: gelu in forward (2 times), softmax in forward"),
        (F.silu, 2, "silu in forward"),
        (F.silu, 1, ""),
        (lambda x: x * torch.sigmoid(x), 2, ""),
        (lambda x: 2 * torch.sigmoid(x), 2, "sigmoid in forward"),
    ],
)
def test_functions_in_forward_code_that_keep_tensors_are_named(function, layers, said):
    found = messages(Calling(function), layers, "hosvd")
    assert found.endswith(said) if said else not found


def test_a_function_whose_output_a_layer_keeps_in_any_case_costs_nothing():
    assert messages(Calling(F.relu), 2, "exact") == ""
    assert "relu in forward" in messages(Calling(F.relu), 2, "hosvd")
