"""The network for series: its size, its gradients, its bytes, and what it does not take."""

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.models import make_model
from fedact.nn.surgery import body_layers, count_text, head
from fedact.simulate import main
from tests.support.refusal import refused

SERIES = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def model():
    torch.manual_seed(0)
    return make_model("temporal_resnet", 6, channels=6).eval()


def step(net):
    net.zero_grad()
    x, y = SERIES
    with fedact.measure_memory(net, inputs=SERIES) as memory:
        F.cross_entropy(net(x), y).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}, memory


def test_it_has_eleven_convolutions_and_a_head():
    net = model()
    assert count_text(net) == "11 convolutions"
    assert body_layers(net)[-2:] == ["blocks.3.conv2", "blocks.3.shortcut.0"]
    assert head(net) == ["head"]
    assert sum(parameter.numel() for parameter in net.parameters()) == 82_822
    assert make_model("temporal_resnet", 3, channels=1)(torch.zeros(1, 1, 50)).shape == (1, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["exact", "exact:derive=3", "checkpoint"])
@pytest.mark.parametrize("train_norm", [False, True])
def test_an_exact_step_has_autograds_gradients_in_fewer_bytes(method, train_norm):
    expected, plain = step(fedact.compress(model(), "vanilla", layers=8, train_norm=train_norm))
    found, memory = step(fedact.compress(model(), method, layers=8, train_norm=train_norm))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert memory.hidden_bytes == 0
    assert memory.saved_bytes < plain.saved_bytes
    # The papers' figure: the trained convolutions' inputs, the one of a block twice where its shortcut is trained too.
    assert 0 < memory.paper_bytes <= plain.paper_bytes


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("asi", "lance", "transform", "auto")]


@pytest.mark.parametrize("method", ["exact", "hosvd", "quantize", *SLOW])
def test_a_plan_for_series_keeps_its_budget(method):
    plan = fedact.make_plan(model(), "128KB", SERIES, method=method, layers=3)
    assert plan.status == "ok"
    assert plan.layers == 3
    part = tuple(tensor[: plan.micro_batch].clone() for tensor in SERIES)
    net = fedact.apply(model(), plan)
    with fedact.measure_memory(net, inputs=part) as memory:
        F.cross_entropy(net(part[0]), part[1]).backward()
    assert memory.hidden_bytes == 0
    assert memory.saved_bytes <= plan.saved_bytes
    assert memory.peak_bytes <= plan.peak_bytes <= 128_000


def test_the_floor_names_a_layer_of_it():
    least = fedact.floor(model(), SERIES)
    assert least.layer in {"stem.0", "blocks.0.conv1", "blocks.1.conv1"}
    assert least.bytes == least.input_bytes + least.output_bytes == 2 * 4 * 32 * 32


MOTION = ["--dataset", "motion", "--model", "temporal_resnet"]
BAD = {
    "--model temporal_resnet is for series (channels, steps): the examples of digits have the shape (8, 8": [
        "--dataset", "digits", "--model", "temporal_resnet",
    ],
    "--weights imagenet is for pictures: temporal_resnet takes series": [*MOTION, "--weights", "imagenet"],
    "temporal_resnet has one width": [*MOTION, "--width", "0.5"],
    "unknown model 'temporal_resnett'": ["--model", "temporal_resnett"],
    "the model has 11 convolutions": [*MOTION, "--layers", "12", "--weights", "none"],
}  # fmt: skip


@pytest.mark.parametrize("said", BAD)
def test_what_does_not_go_with_it_is_refused(capsys, tmp_path, said):
    assert said in refused(capsys, BAD[said], tmp_path / "run")


@pytest.mark.slow
def test_a_fleet_of_natural_clients_learns_motion(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDACT_CACHE", str(tmp_path / "cache"))
    settings = ["--max-examples", "600", "--max-test-examples", "120", "--rounds", "2", "--layers", "3", "--workers", "1"]
    methods = ["--method", "exact", "--method", "hosvd"]
    out = tmp_path / "run"
    assert main([*MOTION, "--partition", "clients", *settings, *methods, "--out", str(out)]) == 0
    rounds = fedact.load_run(out).rounds
    assert set(rounds.method) == {"exact", "hosvd"}
    assert rounds.accuracy.iloc[-1] > 1.5 / 6
