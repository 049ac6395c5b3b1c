"""Inputs and masks that are made again: which, that they are the same, and that nothing is kept for them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v2, mobilenet_v3_small, resnet18

import fedact
from fedact.compression import make_method
from fedact.nn.layers import CodecLayer, RematerializedCodec, SourceConvolution
from fedact.nn.surgery import convolutions, trained_parameters
from tests.support.laws import relative_error
from tests.support.networks import measure, packed_bytes
from tests.support.portions import rotated

BUILDERS = [mobilenet_v2, resnet18, mobilenet_v3_small, efficientnet_b0]
LAYERS = {mobilenet_v2: 8, resnet18: 5, mobilenet_v3_small: 9, efficientnet_b0: 8}


def network(build=mobilenet_v2) -> nn.Module:
    torch.manual_seed(0)
    model = build(num_classes=5).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.double()


def images(seed: int = 0, count: int = 3) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> None:
    F.cross_entropy(model(x), torch.arange(len(x)) % 5).backward()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    step(model, x)
    found = {name: parameter.grad for name, parameter in trained_parameters(model).items()}
    model.zero_grad()
    return found


def derived(model: nn.Module) -> set[str]:
    return {
        name for name, m in model.named_modules() if isinstance(m, CodecLayer) and isinstance(m.codec, RematerializedCodec)
    }


@pytest.mark.filterwarnings("ignore:not compressed")
@rotated(2, build=BUILDERS, reach=[1, 2, 3], train_norm=[False, True])
def test_the_gradient_is_the_exact_one_in_fewer_bytes(build, reach, train_norm):
    model, x = network(build), images()
    held, found = {}, {}
    for method in ("exact", f"exact:derive={reach}"):
        fedact.compress(model, method, LAYERS[build], train_norm)
        memory = measure(model, lambda: step(model, x), x)
        assert memory.hidden_bytes == 0
        held[method] = memory.saved_bytes
        model.zero_grad()
        found[method] = gradients(model, x)
    ours, theirs = found[f"exact:derive={reach}"], found["exact"]
    assert all(relative_error(ours[name], theirs[name]) < 1e-9 for name in theirs)
    assert held[f"exact:derive={reach}"] < held["exact"]


def test_the_ledger_counts_what_the_hooks_see():
    model, x = fedact.compress(network(), "exact:derive=2", 4), images()
    labels = torch.arange(len(x))
    measured = measure(model, lambda: F.cross_entropy(model(x), labels).backward(), (x, labels))
    assert measured.saved_bytes == packed_bytes(model, x, labels)


@pytest.mark.parametrize(
    ("layers", "reach", "made_again", "frozen_origins"),
    [
        (4, 2, {"features.17.conv.1.0", "features.17.conv.2"}, set()),
        (4, 3, {"features.17.conv.1.0", "features.17.conv.2", "features.18.0"}, set()),
        (4, 1, {"features.17.conv.1.0", "features.17.conv.2"}, set()),
        (2, 2, {"features.17.conv.2"}, {"features.17.conv.0.0"}),
        (1, 2, set(), set()),
    ],
)
def test_what_is_made_again_in_mobilenet(layers, reach, made_again, frozen_origins):
    # With a reach of 1 the projection's input comes from the depthwise layer's, which is as large and so kept.
    made_again = {"features.17.conv.2"} if reach == 1 else made_again
    model = fedact.compress(network(), f"exact:derive={reach}", layers)
    assert derived(model) == made_again
    assert {name for name, module in model.named_modules() if isinstance(module, SourceConvolution)} == frozen_origins
    fedact.restore(model)
    assert not derived(model)
    assert not any(isinstance(module, SourceConvolution) for module in model.modules())


def test_nothing_is_left_behind_by_a_step_or_without_gradients():
    model, x = fedact.compress(network(), "exact:derive=2", 2), images()
    gradients(model, x)
    with torch.no_grad():
        model(x)
    assert all(not len(module.codec.provenance) for module in model.modules() if isinstance(module, CodecLayer))


@pytest.mark.parametrize("method", ["exact:derive=2", "transform:bits=2,derive=2"])
def test_a_saved_input_is_freed_where_a_hook_keeps_its_readers_away(method):
    model, x = fedact.compress(network(), method, 4), images()
    readers = derived(model)
    assert readers
    for name in readers:
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: (args[0].clone(),))
    gradients(model, x)
    assert all(not len(module.codec.provenance) for module in model.modules() if isinstance(module, CodecLayer))


def test_a_part_that_runs_without_its_origin_saves_its_input_itself():
    model, x = network(), torch.randn(2, 960, 2, 2, dtype=torch.float64)
    found = []
    for method in ("exact", "exact:derive=2"):
        layer = fedact.compress(model, method, 4).features[17].conv[2]
        found.append(torch.autograd.grad(layer(x).sum(), layer.weight)[0])
    assert torch.equal(*found)


def test_two_forward_passes_before_their_backward_passes_do_not_mix():
    model, (first, second) = fedact.compress(network(), "exact:derive=2", 4), (images(1), images(2, count=2))
    expected = [gradients(model, x) for x in (first, second)]
    losses = [F.cross_entropy(model(x), torch.arange(len(x)) % 5) for x in (first, second)]
    for loss, theirs in zip(losses, expected, strict=True):
        loss.backward()
        assert all(torch.equal(p.grad, theirs[name]) for name, p in trained_parameters(model).items())
        model.zero_grad()


def test_a_derived_layers_gradient_is_that_of_what_the_chain_makes_of_the_reconstruction():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    x = images()[..., :9, :9].float()
    model = fedact.compress(copy.deepcopy(plain), "transform:variance=0.9,derive=2", 2)
    assert derived(model) == {"3"}
    grad = torch.randn(model(x).shape)
    model(x).backward(grad)
    method = make_method("transform:variance=0.9,derive=2")
    # The state of the first forward pass, which the second one started from, changes nothing.
    rebuilt = method.reconstruct(method.compress(x))
    plain(rebuilt).backward(grad)
    assert all(relative_error(model[n].weight.grad, plain[n].weight.grad) < 1e-5 for n in (0, 3))


def test_a_layer_that_runs_twice_is_no_origin_and_is_not_made_again():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.again(self.first(x)))).mean((2, 3))

    torch.manual_seed(0)
    model = Twice().double()
    fedact.compress(model, "exact:derive=1", 3)
    assert derived(model) == set()
    ours = gradients(model, images())
    theirs = gradients(fedact.compress(model, "exact", 3), images())
    assert all(relative_error(ours[name], theirs[name]) < 1e-12 for name in theirs)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.left(x) * self.right(x)).mean((2, 3))


def test_branches_with_the_same_exact_input_have_second_derivatives():
    torch.manual_seed(0)
    plain, found = Branches().double(), []
    for model in (plain, fedact.compress(copy.deepcopy(plain), "exact:derive=1", 2)):
        x = images().requires_grad_()
        (first,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), [x, *model.parameters()]))
    assert derived(model) == {"right"}
    assert all(relative_error(ours, theirs) < 1e-12 for theirs, ours in zip(*found, strict=True))


def test_branches_with_the_same_input_keep_it_once():
    torch.manual_seed(0)
    model = fedact.compress(Branches().double(), "transform:bits=2,derive=1", 2)
    assert derived(model) == {"right"}
    assert len(convolutions(model)) == 2
    gradients(model, images())


@pytest.mark.parametrize("value", ["-1", "1.5", "true"])
@pytest.mark.parametrize("method", ["exact", "transform"])
def test_a_reach_that_is_no_number_is_refused(method, value):
    with pytest.raises(ValueError, match="derive"):
        make_method(f"{method}:derive={value}")


def test_a_larger_input_is_a_source_where_it_is_saved_in_any_case():
    """Of three convolutions, the second's input is half of the first's, which is saved for the first's own weight."""
    layers = nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
    first, head = (nn.Conv2d(3, 4, 1), nn.AvgPool2d(2)), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model, x = nn.Sequential(*first, *layers, *head).double(), images(count=2)
    fedact.compress(model, "exact", layers=3)
    wanted = gradients(model, x)
    fedact.compress(model, "exact", layers=3, recompute=1)
    assert derived(model) == {"4"}
    for name, gradient in gradients(model, x).items():
        assert relative_error(gradient, wanted[name]) < 1e-12
    # Where the first is frozen, its larger input is not saved for the second.
    fedact.compress(model, "exact", layers=2, recompute=1)
    assert "4" not in derived(model)


def test_measuring_does_not_change_how_a_large_weights_gradient_is_added():
    """A second tensor of a weight's size, where hooks hand out the saved weight, would be in the measured peak alone."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 256, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 5))
    fedact.compress(model, "exact", layers=2, recompute=1)
    assert derived(model) == {"4"}
    for parameter in trained_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    x, y = torch.rand(1, 3, 4, 4), torch.tensor([1])
    memory = measure(model, lambda: F.cross_entropy(model(x), y).backward(), (x, y))
    assert memory.peak_bytes < model[4].weight.nbytes / 2
