"""``checkpoint``: the same gradient and fewer bytes, whatever the Sequential holds."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet18

import fedact
from tests.support.laws import relative_error
from tests.support.networks import measure, train
from tests.support.reachable import held_storages

X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
SETTINGS = ["checkpoint", "checkpoint:children=2", "checkpoint:children=30"]


def deep(act=nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    for _ in range(8):
        model.extend([nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), act(inplace=True)])
    return model.extend([nn.Flatten(), nn.Linear(256, 4)])


def gradients(model: nn.Module, text: str, layers: int, train_norm: bool = False, x: Tensor = X, y: Tensor = Y):
    fedact.compress(model, text, layers, train_norm).zero_grad()
    torch.manual_seed(1)
    train(model, x, y)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert actual.keys() == expected.keys()
    assert all(relative_error(actual[name], expected[name]) < tolerance for name in expected)


def saved(text: str, train_norm: bool, act=nn.ReLU) -> int:
    model = fedact.compress(deep(act), text, 8, train_norm)
    memory = measure(model, lambda: train(model, X, Y), (X, Y))
    assert memory.hidden_bytes == 0
    return memory.saved_bytes


@pytest.mark.parametrize("text", SETTINGS)
@pytest.mark.parametrize("train_norm", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_recomputation_gives_exacts_gradients(text, train_norm, act):
    assert_same(gradients(deep(act), text, 6, train_norm), gradients(deep(act), "exact", 6, train_norm))


@pytest.mark.parametrize("train_norm", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_segments_hold_fewer_bytes_than_exact(train_norm, act):
    assert saved("checkpoint:children=4", train_norm, act) < saved("exact", train_norm, act)


@pytest.mark.parametrize("train_norm", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_the_default_never_holds_more_bytes_than_exact(train_norm, act):
    assert saved("checkpoint", train_norm, act) <= saved("exact", train_norm, act)


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU])
def test_one_of_two_segments_is_held_at_a_time_also_the_first_whose_input_has_no_gradient(act):
    segment_inputs = 2 * len(X) * 4 * 8 * 8 * X.itemsize
    assert saved("checkpoint:children=4", False, act) <= saved("exact", False, act) / 2 + segment_inputs


@pytest.mark.filterwarnings("ignore:not compressed")
@pytest.mark.parametrize("build", [resnet18, mobilenet_v2, efficientnet_b0])
@pytest.mark.parametrize("text", ["checkpoint", "checkpoint:children=3"])
def test_torchvisions_networks_in_training_mode_hide_nothing_and_get_vanillas_gradients(build, text):
    torch.manual_seed(0)
    model, x, y = build(num_classes=4).train(), torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    expected = gradients(model, "vanilla", 4, True, x, y)
    assert_same(gradients(model, text, 4, True, x, y), expected, 1e-4)
    assert measure(model, lambda: train(model, x, y), (x, y)).hidden_bytes == 0


@pytest.mark.parametrize("text", ["checkpoint", "checkpoint:children=3"])
def test_a_residual_block_with_one_trained_convolution_hides_nothing(text):
    model, x, y = resnet18(num_classes=4), torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    fedact.compress(model, text, layers=1, train_norm=True)
    assert measure(model, lambda: train(model, x, y), (x, y)).hidden_bytes == 0


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class Sum(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] * pair[1]


@pytest.mark.parametrize("inner", [[Noise()], [Pair(), Sum()]], ids=["random numbers", "more than one tensor"])
def test_what_lies_in_a_segment_runs_again_as_it_ran(inner):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), *inner, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4)]
    model = nn.Sequential(*parts)
    assert_same(gradients(model, "checkpoint", 2), gradients(model, "vanilla", 2))


@pytest.mark.parametrize("noise", [False, True])
def test_a_segment_saves_the_generators_state_only_where_it_draws_numbers(noise):
    def saved_bytes(text: str) -> int:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Conv2d(3, 4, 3), Noise() if noise else nn.Identity())
        model = fedact.compress(nn.Sequential(first, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4)), text, 2)
        memory = measure(model, lambda: train(model, X, Y), (X, Y))
        assert memory.hidden_bytes == 0
        state = torch.get_rng_state()
        _, hung = held_storages(model, [F.cross_entropy(model(X), Y)], [X, Y])
        assert (hung, torch.equal(state, torch.get_rng_state())) == ({}, not noise)
        return memory.saved_bytes

    # The input of the second segment and of the head, a softmax; one state, where the noise is.
    expected = sum(len(X) * size * 4 for size in (4 * 6 * 6, 64, 4)) + 4
    assert saved_bytes("checkpoint") - expected in ((5056,) if noise else (0,))


def test_more_than_one_tensor_goes_from_segment_to_segment():
    torch.manual_seed(0)
    split, join = nn.Sequential(nn.Conv2d(3, 4, 3), Pair()), nn.Sequential(Sum(), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(split, join, nn.Flatten(), nn.Linear(64, 4))
    assert_same(gradients(model, "checkpoint", 2), gradients(model, "vanilla", 2))


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_the_same_the_second_time(inside):
    results = {}
    for text in ("exact", "checkpoint:children=2"):
        model = fedact.compress(deep(nn.SiLU), text, 4)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(X), Y)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss.backward()
        results[text] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(results["checkpoint:children=2"], results["exact"])


def test_a_copy_a_kept_graph_and_restore_know_nothing_of_segments():
    model = fedact.compress(deep(), "checkpoint:children=2", 4)
    twin, loss = copy.deepcopy(model), F.cross_entropy(model(X), Y)
    trained = [p for p in model.parameters() if p.requires_grad]
    first, second = (torch.autograd.grad(loss, trained, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(twin(X), model(X))
    assert type(fedact.restore(model)) is nn.Sequential
    assert "segment" not in vars(model)


def test_a_segment_that_changes_its_input_in_place_says_so():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)))
    fedact.compress(model, "checkpoint", 2)
    with pytest.raises(fedact.ConfigError, match="in place"):
        model(X)


def test_to_look_whether_a_segment_drew_numbers_is_in_no_peak(monkeypatch):
    """The generator's state is copied and compared by no operation; only what is kept of it counts."""
    model = fedact.compress(deep(), "checkpoint", 4)
    looked = measure(model, lambda: train(model, X, Y), (X, Y))
    monkeypatch.setattr("fedact.nn.layers.checkpointed._RunContext.random_states", lambda _: ())
    assert measure(model, lambda: train(model, X, Y), (X, Y)) == looked
