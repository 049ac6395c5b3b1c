"""Streams in a model: what is found, when it runs otherwise, and that restoring leaves no trace."""

import copy
import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import fedact
from fedact.compression.exact import Exact
from fedact.models import make_model
from fedact.nn.streams.find import find
from fedact.nn.streams.install import in_whole_maps
from fedact.nn.surgery import install
from tests.support.inverted_residuals import (
    InvertedResidual,
    assert_close,
    batch,
    gradients,
    network,
    plain_gradients,
    small,
)


@pytest.mark.parametrize(
    ("build", "blocks"),
    [
        (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), 18),
        (lambda: torchvision.models.mnasnet0_5(), 18),
        (lambda: make_model("mcunet", 3), 14),
        # Of 15 blocks those without squeeze-and-excitation.
        (lambda: torchvision.models.mobilenet_v3_large(), 8),
        (lambda: torchvision.models.resnet18(), 1),
        (lambda: torchvision.models.densenet121(), 1),
    ],
)
def test_inverted_residuals_and_pooled_convolutions_are_found(build, blocks):
    assert len(find(build())) == blocks


def test_the_stem_streams_with_a_block_without_expansion():
    first, second, *_ = find(small())
    assert first.convolutions == ["0.0", "1.conv.0", "1.conv.3"]
    assert second.names() == [f"2.conv.{place}" for place in range(8)]


def test_a_wide_tensor_that_something_else_reads_is_left_alone():
    class Leaky(InvertedResidual):
        def forward(self, x):
            wide = self.conv[:3](x)
            return self.conv[3:](wide) + wide.mean()

    assert find(network(Leaky(4, 8, 6))) == []


def test_restore_leaves_the_plain_model():
    model = small()
    classes, keys = [type(module) for module in model.modules()], list(model.state_dict())
    attributes = [set(vars(module)) for module in model.modules()]
    fedact.compress(model, "exact", layers=6, room="2KB")
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] != classes
    fedact.restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert [set(vars(module)) for module in model.modules()] == attributes


def test_copies_and_pickles_stream_too():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(gradients(other, x, y), want)
        assert other[2].conv[0].stream is other[2].conv[1].stream is not model[2].conv[0].stream


def test_a_module_called_alone_is_itself():
    torch.manual_seed(0)
    model, (x, _) = small().double().eval(), batch(2)
    want = [layer(x[:, :1].expand(-1, layer.in_channels, -1, -1)) for layer in (model[0][0], model[2].conv[0])]
    stem = model[:1](x)
    fedact.compress(model, "exact", layers=12, room=2000)
    found = [layer(x[:, :1].expand(-1, layer.in_channels, -1, -1)) for layer in (model[0][0], model[2].conv[0])]
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(model[:1](x), stem)
    assert_streams(model, x)


def test_a_hook_between_the_layers_sees_the_wide_tensor():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want, shapes = plain_gradients(model, x, y, 12), []
    fedact.compress(model, "exact", layers=12, room=2000)
    handle = model[2].conv[2].register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    assert_close(gradients(model, x, y), want)
    assert shapes == [10]
    handle.remove()
    assert_streams(model, x)


def assert_streams(model: nn.Module, x: torch.Tensor) -> None:
    """Assert that the model's wide tensors are never whole, by the bytes of an inference."""
    with fedact.measure_memory(model, x) as whole, torch.no_grad():
        fedact.restore(copy.deepcopy(model))(x)
    with fedact.measure_memory(model, x) as streamed, torch.no_grad():
        model(x)
    assert streamed.peak_bytes < whole.peak_bytes


def test_the_order_of_a_block_may_not_be_changed_from_within():
    torch.manual_seed(0)
    model, (x, _) = small().double(), batch(2)
    fedact.compress(model, "exact", layers=12, room=2000)
    block = model[2].conv[0].stream
    block.calls += 1
    narrow = model[1](model[0](x))
    y = model[2].conv[0](narrow)
    with pytest.raises(fedact.ConfigError, match="another tensor"):
        model[2].conv[1](2 * y)


def test_other_calls_run_the_layers_one_by_one():
    torch.manual_seed(0)
    model, (x, y) = small(), batch(2, dtype=torch.float32)
    plain = copy.deepcopy(model).eval()
    fedact.compress(model, "exact", layers=12, room=2000)
    torch.testing.assert_close(model(x[0:0]), plain(x[0:0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(x), plain(x), atol=0.1)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), plain(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected 4D input"):
        model[2].conv(torch.ones(5, 6, 6))
    model[2].conv[1].weight.requires_grad_()
    assert "2.conv.1.weight" in gradients(model, x, y)


def test_pytorchs_checkpoint_around_blocks():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000)
    for reentrant in (False, True):
        model.zero_grad()
        h = checkpoint(model[2:4], model[1](model[0](x)), use_reentrant=reentrant)
        F.cross_entropy(model[4:](h), y).backward()
        assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, want)


def test_nothing_to_stream_is_said_and_changes_nothing():
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    with pytest.warns(UserWarning, match="room changes nothing"):
        model = fedact.compress(nn.Sequential(*layers), "exact", layers=1, room=1000)
    assert type(model) is nn.Sequential


@pytest.mark.parametrize(
    ("method", "room", "said"), [("vanilla", 100, "vanilla"), ("exact", 0, "size"), ("exact", "5 apples", "size")]
)
def test_what_cannot_be_is_refused(method, room, said):
    with pytest.raises(fedact.ConfigError, match=said):
        fedact.compress(small(), method, layers=1, room=room)


def test_peaks_stay_where_they_are():
    """MobileNetV2 0.35 at 64 px, one image, all layers: kept inputs, a block's own tensors and the room."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(num_classes=3, width_mult=0.35)
    x, y = torch.rand(1, 3, 64, 64), torch.tensor([1])
    peaks = {}
    for room in (None, 20_000, 60_000):
        fedact.compress(model, "exact", layers=52, room=room)
        with fedact.measure_memory(model, (x, y)) as memory:
            gradients(model, x, y)
        peaks[room] = memory.peak_bytes
    assert peaks[20_000] <= 150_000
    assert peaks[20_000] <= peaks[60_000] <= 190_000
    assert peaks[None] > 4 * peaks[60_000]


def test_a_model_called_twice_has_both_gradients():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    fedact.compress(model, "vanilla", layers=12)
    (F.cross_entropy(model(x), y) + F.cross_entropy(model(x.flip(0)), y)).backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    fedact.restore(model).zero_grad()
    fedact.compress(model, "exact", layers=12, room=2000)
    (F.cross_entropy(model(x), y) + F.cross_entropy(model(x.flip(0)), y)).backward()
    assert_close({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, want)


def test_a_plan_with_room_is_applied():
    torch.manual_seed(0)
    model, (x, y) = small(), batch(2, dtype=torch.float32)
    plan = fedact.make_plan(model, "1MB", (x, y), method="exact", layers=5)
    plan = fedact.Plan.from_json(dataclasses.replace(plan, room_bytes=2000).to_json())
    fedact.apply(model, plan)
    assert_streams(model, x)


def test_a_host_runs_whole_maps_where_no_bytes_are_counted():
    model, (x, _) = fedact.compress(small(), "exact", layers=2, room=100), batch(dtype=torch.float32)

    def peak_bytes() -> int:
        with fedact.measure_memory(model, x) as memory, torch.no_grad():
            model(x)
        return memory.peak_bytes

    streamed = peak_bytes()
    with in_whole_maps(model):
        assert peak_bytes() > streamed
    assert peak_bytes() == streamed


@pytest.mark.parametrize("activation", ["hardswish", "silu", "gelu"])
def test_a_frozen_block_needs_no_method_for_its_activations(activation):
    torch.manual_seed(0)
    model, (x, y) = network(InvertedResidual(4, 12, 4, activation=activation), InvertedResidual(4, 12, 6)), batch()
    want = plain_gradients(model.double(), x, y, 2)
    layers = "2.conv.3", "2.conv.6", "5"
    install(model, dict.fromkeys(layers, Exact()), room=1000)
    assert_close(gradients(model, x, y), want)
    assert_streams(model, x)
    assert type(fedact.restore(model)[1].conv[2]) in (nn.Hardswish, nn.SiLU, nn.GELU)
    assert not hasattr(model[1].conv[2], "codec")
