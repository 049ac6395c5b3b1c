"""What the frozen part on a few examples at a time holds, and what surgery leaves of it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, mobilenet_v2, resnet18

import fedact
from fedact.measure.memory import Memory
from fedact.measure.step import prefix_outputs
from fedact.nn.surgery import trained_parameters
from fedact.planner import make_plan
from fedact.training.evaluation import evaluate
from tests.support import planned
from tests.support.networks import Residual, batch, chunked, measure, train

X, Y = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return mobilenet_v2(num_classes=4, width_mult=0.35)


def memory_of(model: nn.Module, x=X, y=Y) -> Memory:
    model.zero_grad()
    return measure(model, lambda: train(model, x, y), (x, y))


def inference_peak(model: nn.Module, x) -> int:
    with torch.no_grad():
        return measure(model, lambda: model(x), x).peak_bytes


def figures(memory: Memory) -> tuple:
    return memory.saved_bytes, memory.state_bytes, memory.paper_bytes, memory.hidden_bytes, memory.by_layer


@pytest.mark.parametrize(
    "method", ["exact", "vanilla", "hosvd:ranks=1x2x2x2", "exact:derive=2", "checkpoint", "asi:ranks=2x2x2x2"]
)
def test_the_peak_falls_and_what_is_held_stays_the_same(model, method):
    at_once, twos, ones = (memory_of(chunked(model, chunk, method)) for chunk in (0, 2, 1))
    assert figures(at_once) == figures(twos) == figures(ones)
    assert at_once.hidden_bytes == 0
    assert ones.peak_bytes <= twos.peak_bytes < at_once.peak_bytes


def test_with_the_head_alone_the_peak_is_that_of_inference_and_of_what_the_head_takes(model):
    ones, twos, at_once = (memory_of(chunked(model, chunk, layers=0)).peak_bytes for chunk in (1, 2, 0))
    head_input = len(X) * 1280 * 4
    assert ones == inference_peak(model, X[:1]) + head_input
    assert twos == inference_peak(model, X[:2]) + head_input
    assert at_once == inference_peak(model, X)


@pytest.mark.filterwarnings("ignore:not compressed")
@pytest.mark.parametrize(
    ("build", "layers", "train_norm"), [(resnet18, 4, True), (densenet121, 3, False), (Residual, 2, False)]
)
def test_values_that_cross_are_held_where_they_were(build, layers, train_norm):
    torch.manual_seed(0)
    model = build() if build is Residual else build(num_classes=4)
    x, y = batch(5) if build is Residual else (X[:5, :, :64, :64].clone(), Y[:5])
    at_once, pieces = (memory_of(chunked(model, chunk, "exact", layers, train_norm), x, y) for chunk in (0, 2))
    assert figures(at_once) == figures(pieces)
    assert pieces.peak_bytes <= at_once.peak_bytes


class Blocks(nn.Module):
    """Functions within the module that the cut goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Residual(), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.sigmoid(self.block(x)))


def test_what_functions_hold_bears_the_name_of_the_module_they_are_in():
    torch.manual_seed(0)
    model, (x, y) = Blocks(), batch(5)
    at_once, pieces = (memory_of(chunked(model, chunk, layers=2), x, y % 4) for chunk in (0, 2))
    assert {"", "block", "block.right", "head"} <= set(at_once.by_layer)
    assert figures(at_once) == figures(pieces)


def test_restore_leaves_no_trace(model):
    def state() -> list:
        return [(type(module), sorted(vars(module))) for module in model.modules()]

    model.segment, model.source = "the user's", "own"
    before, keys = state(), list(model.state_dict())
    chunked(model, 2)
    train(model, X, Y)
    assert list(model.state_dict()) == keys
    assert isinstance(model, type(model).plain)
    assert fedact.restore(model) is model
    assert state() == before
    assert (model.segment, model.source) == ("the user's", "own")


@pytest.mark.parametrize("method", ["exact", "checkpoint:children=2"])
def test_a_sequential_model_is_one_again(method):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), *(nn.Conv2d(4, 4, 3) for _ in range(3)), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * 88 * 88, 4))
    at_once, pieces = (memory_of(chunked(model, chunk, method, 2)) for chunk in (0, 3))
    assert figures(at_once) == figures(pieces)
    assert pieces.peak_bytes <= at_once.peak_bytes
    assert type(fedact.restore(model)) is nn.Sequential
    assert not any("fedact" in name for name in vars(model))


def test_installing_again_changes_the_chunk(model):
    peaks = [memory_of(chunked(model, chunk)).peak_bytes for chunk in (4, 1, 4, 0)]
    assert peaks[1] < peaks[0] == peaks[2] < peaks[3]
    assert type(fedact.compress(model, "exact")) is type(fedact.compress(mobilenet_v2(), "exact"))


def test_a_deep_copy_of_a_chunked_model_is_chunked_and_trains_alone(model):
    expected = memory_of(chunked(model, 1))
    model.zero_grad()
    twin = copy.deepcopy(model)
    assert memory_of(twin) == expected
    assert all(parameter.grad is None for parameter in model.parameters())
    assert type(fedact.restore(twin)) is type(fedact.restore(model))


def test_hooks_of_frozen_modules_see_every_example_once(model):
    chunked(model, 3)
    seen: dict[str, list] = {}
    for name in ("features.0.0", "features.5", "features.16.conv.1.2"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.setdefault(name, []).append(output.clone())
        )
    train(model, X, Y)
    pieces, sizes = {name: torch.cat(outputs) for name, outputs in seen.items()}, [len(each) for each in seen["features.5"]]
    seen.clear()
    with torch.no_grad():
        model(X)
    assert sizes == [3, 3, 2]
    assert all(torch.allclose(pieces[name], whole, atol=1e-5) for name, (whole,) in seen.items())


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_hooks_of_the_modules_that_are_cut_see_what_they_return_once(model):
    outputs = []
    chunked(model, 3).features.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))
    model.features.register_full_backward_hook(lambda *args: None)
    train(model, X, Y)
    with torch.no_grad():
        model(X)
    pieces, whole = outputs
    assert torch.allclose(pieces, whole, atol=1e-5)
    assert "forward" not in vars(model.features)


def test_an_error_in_the_trained_part_leaves_the_model_as_it_was(model):
    def refuse(*_):
        raise ValueError("no more")

    handle = chunked(model, 3).features[18].register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match=r"^no more$"):
        model(X)
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert memory_of(model) == memory_of(chunked(model, 3))


def test_without_gradients_the_model_runs_at_once(model):
    expected = evaluate(chunked(model, 0), lambda places: (X[places], Y[places]), len(X))
    assert evaluate(chunked(model, 1), lambda places: (X[places], Y[places]), len(X)) == expected
    assert len(prefix_outputs(model, X).values[-1]) == len(X)


def test_a_plan_brings_its_chunk():
    plan = make_plan(planned.net(), None, planned.batch(8), "exact", 0, "peak")
    models = [fedact.apply(planned.net(), replace(plan, prefix_chunk=chunk)) for chunk in (0, 1)]
    at_once, ones = (planned.step(model, *planned.batch(8, 1)) for model in models)
    assert figures(at_once) == figures(ones)
    assert at_once.peak_bytes == plan.peak_bytes > ones.peak_bytes


def test_parameters_are_the_same_objects(model):
    before = list(model.parameters())
    assert all(a is b for a, b in zip(before, chunked(model, 1).parameters(), strict=True))
    assert len(trained_parameters(model)) == 6
