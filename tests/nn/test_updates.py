"""What of a layer is trained: gradients are plain PyTorch's of the same parametrised network, bytes what is needed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models.convnext import LayerNorm2d

import fedact
from fedact.config.errors import ConfigError
from fedact.nn.adaptation import adapt
from fedact.nn.body import head
from fedact.nn.install import install
from fedact.nn.layers.parts import part_of
from fedact.nn.surgery import assign, make_method, smooth_activations, trained_layers, trained_parameters
from tests.support.transformers import swin, vit

UPDATES = ["bias", "lora:rank=2,alpha=3", "lora:rank=2,freeze_a=true"]
METHODS = ["vanilla", "exact", "checkpoint", "hosvd:variance=1.0", "transform:bits=16", "exact:derive=2"]


def norms() -> nn.Module:
    """Return a network with norms of each example's, whose outputs are as small as those of the other networks' layers."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 8, 3, bias=False), LayerNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 8, 3), nn.LayerNorm(6, bias=False), nn.InstanceNorm2d(8, affine=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    for place in (1, 4, 8):
        nn.init.constant_(model[place].weight, 0.2)
    return model


class Tokens(nn.Module):
    """Linear layers over tokens, with more of them than convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 8)
        self.activation, self.head = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = x + self.second(self.activation(self.first(x)))
        return self.head(self.activation(self.third(x)).mean(1))


def pictures() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8), nn.GELU(), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 5), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 26, 5),
    )  # fmt: skip


NETWORKS = {
    "pictures": (pictures, (4, 3, 12, 12)), "series": (series, (4, 3, 30)), "tokens": (Tokens, (4, 3, 12, 12)),
    "norms": (norms, (4, 3, 12, 12)), "vit": (vit, (4, 3, 32, 32)), "swin": (swin, (4, 3, 32, 32)),
}  # fmt: skip
LAYERS = {"pictures": 3, "series": 2, "tokens": 3, "norms": 2, "vit": 6, "swin": 6}


def made(name: str, update: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return an adapted model in double precision, with B as after some training, and a batch."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = adapt(make().double(), LAYERS[name], update, seed=3)
        for key, parameter in model.named_parameters():
            if key.endswith("lora_b"):
                nn.init.normal_(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        return model, torch.randn(shape, dtype=torch.double), torch.tensor([0, 1, 2, 4])


def plain_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return autograd's gradients of the network whose weights are W + scale B A, and whose trained biases are leaves."""
    model = copy.deepcopy(model).requires_grad_(False).eval()
    leaves: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if (part := part_of(module)) is not None:
            own = {key: module.get_parameter(key).detach().clone().requires_grad_() for key in part.names}
            leaves |= {f"{name}.{key}": leaf for key, leaf in own.items()}
            if part.scale is None:
                weights |= {f"{name}.{key}": leaf for key, leaf in own.items()}
            else:
                a, b = own.get("lora_a", module.lora_a), own["lora_b"]
                weights[f"{name}.weight"] = module.weight + part.scale * (b.flatten(1) @ a.flatten(1)).view_as(module.weight)
    for name in head(model):
        own = {
            f"{name}.{key}": p.detach().clone().requires_grad_() for key, p in model.get_submodule(name).named_parameters()
        }
        leaves, weights = leaves | own, weights | own
    F.cross_entropy(functional_call(model, weights, (x,)), y).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def installed(model: nn.Module, method: str, layers: int) -> nn.Module:
    names = [*trained_layers(model, layers), *smooth_activations(model)]
    return install(model, assign(model, names, make_method(method))).train()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_autograds_of_the_parametrised_network(network, update, method):
    model, x, y = made(network, update)
    expected = plain_gradients(model, x, y)
    installed(model, method, LAYERS[network])
    F.cross_entropy(model(x), y).backward()
    found = {name: parameter.grad for name, parameter in trained_parameters(model).items()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # transform works in float32.
        close = {"rtol": 2e-3, "atol": 1e-4} if method.startswith("transform") else {"rtol": 1e-6, "atol": 1e-8}
        torch.testing.assert_close(found[name], gradient, **close)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("update", UPDATES)
def test_restore_adds_the_update_to_the_weights_and_leaves_the_plain_model(network, update):
    model, x, _ = made(network, update)
    names = NETWORKS[network][0]().state_dict().keys()
    installed(model, "exact", LAYERS[network]).eval()
    before = model(x)
    assert torch.allclose(fedact.restore(model).eval()(x), before)
    assert model.state_dict().keys() == names
    assert not any(part_of(module) for module in model.modules())


def test_a_bias_needs_no_input_and_a_frozen_first_factor_a_few_channels_of_it():
    x, y = torch.randn(4, 3, 12, 12), torch.tensor([0, 1, 2, 4])
    found = {}
    for update in ("layers", "lora:rank=2", "lora:rank=2,freeze_a=true", "bias"):
        model = fedact.compress(pictures(), "exact", layers=4, update=update)
        with fedact.measure_memory(model, inputs=(x, y)) as memory:
            F.cross_entropy(model(x), y).backward()
        found[update] = memory.saved_bytes
    few = 4 * 4 * 2 * (2 * 10 * 10 + 8 * 8)
    # Beside what is kept for biases: A times the inputs of the three layers that are no depthwise convolutions.
    assert found["lora:rank=2,freeze_a=true"] == found["bias"] + few
    assert found["bias"] < found["lora:rank=2,freeze_a=true"] < found["lora:rank=2"]


def test_shifts_of_norms_after_the_first_layer_are_biases_too():
    model, x, y = made("norms", "bias")
    trained = list(trained_parameters(installed(model, "quantize:bits=4", 2)))
    assert trained == ["4.bias", "6.bias", "8.bias", "12.weight", "12.bias"]
    F.cross_entropy(model(x), y).backward()
    shifts = plain_gradients(made("norms", "bias")[0], x, y)
    # Nothing that its gradient has passed is shown with loss; the first one's has passed two norms and a GELU that are.
    torch.testing.assert_close(model[8].bias.grad, shifts["8.bias"])
    assert F.cosine_similarity(model[4].bias.grad, shifts["4.bias"], 0) > 0.9


def test_what_is_trained_is_what_the_update_says():
    trained = {
        update: list(trained_parameters(fedact.compress(pictures(), "exact", layers=3, update=update))) for update in UPDATES
    }
    bare = ["12.weight", "12.bias"]
    # The third layer from the end has its bias; the norm before it is not after the first of them.
    assert trained["bias"] == ["3.bias", "5.bias", "8.bias", *bare]
    assert trained[UPDATES[1]] == ["3.lora_a", "3.lora_b", "7.lora_a", "7.lora_b", *bare]
    assert trained[UPDATES[2]] == ["3.lora_b", "7.lora_b", *bare]


def test_a_low_rank_update_begins_with_nothing_and_the_same_everywhere():
    x, make = torch.randn(2, 3, 12, 12), pictures
    plain = make().eval()
    models = [
        fedact.compress(copy.deepcopy(plain), "exact", layers=3, update="lora:rank=3", seed=seed) for seed in (0, 0, 1)
    ]
    assert all(torch.equal(model.eval()(x), plain(x)) for model in models)
    first, same, other = (dict(model.named_parameters())["3.lora_a"] for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"update": "lorra"}, "did you mean 'lora'"),
        ({"update": "lora:rank=0"}, "at least 1"),
        ({"update": "lora:rang=2"}, "did you mean 'rank'"),
        ({"update": "bias:rank=2"}, "has no settings"),
        ({"update": "bias", "train_norm": True}, "train_norm is for update layers"),
        ({"update": "lora:rank=2", "room": "8KB"}, "room is for update layers"),
        ({"update": "bias", "layers": 99}, "4 convolutions"),
    ],
)
def test_a_wrong_update_is_refused_in_one_line(given, says):
    with pytest.raises(ConfigError, match=says) as caught:
        fedact.compress(pictures(), "exact", **{"layers": 2, **given})
    assert "\n" not in str(caught.value)


def test_a_network_without_a_head_has_nothing_to_train_by_biases_alone():
    with pytest.raises(ConfigError, match="has no head"):
        fedact.compress(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "exact", layers=1, update="bias")


def test_a_layer_whose_weight_the_code_reads_itself_is_not_said_to_be_trained():
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.read, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.conv2d(self.first(x).relu(), self.read.weight).mean((2, 3)))

    example = torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 4])
    plan = fedact.make_plan(Reading(), None, example, "exact", layers=2, update="lora:rank=2")
    assert list(trained_parameters(fedact.apply(Reading(), plan))) == [
        "first.lora_a", "first.lora_b", "head.weight", "head.bias",
    ]  # fmt: skip
