"""The frozen prefix in tiles: the outputs of whole maps, in the bytes that were predicted."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small, resnet18

import fedact
from fedact.models.mcunet import MCUNet
from fedact.nn.prefix.chunks import in_chunks
from fedact.nn.prefix.split import Split, split
from fedact.nn.prefix.tiles import TiledPrefix
from fedact.nn.prefix.tiles_choice import best_tiles, least_tilings, tilings
from fedact.planner import make_plan
from tests.support import planned
from tests.support.inverted_residuals import InvertedResidual, small
from tests.support.inverted_residuals import network as residuals
from tests.support.networks import measure, tiled, train
from tests.support.random_networks import network

X, Y = torch.randn(2, 3, 65, 64, generator=torch.Generator().manual_seed(0)), torch.arange(2)
NETWORKS = {
    "mobilenet_v2": lambda: mobilenet_v2(num_classes=4, width_mult=0.25),
    "resnet18": lambda: resnet18(num_classes=4),
    "mcunet": lambda: MCUNet(4),
}


def peak(model: nn.Module, prefix, x: Tensor) -> int:
    return measure(model, lambda: prefix(x), x).peak_bytes


def check_all(parts: Split, count: int, x: Tensor, tolerance: float, every: int = 1) -> list:
    """Run the choices with so many tiles: the outputs are the whole's, the bytes those that were predicted."""
    expected, choices = parts.prefix(x), tilings(parts, tuple(x.shape), x.dtype, [count])
    prefix = TiledPrefix(parts, count)
    programs = prefix.programs(tuple(x.shape[1:]), x.dtype)
    for choice in choices[::every]:
        for one, other in zip(prefix.run(programs, choice.steps, x), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
        assert choice.exact
        assert peak(parts.model, lambda x, steps=choice.steps: prefix.run(programs, steps, x), x) == choice.peak_bytes
    return choices


class Drawn(nn.Module):
    """Layers in a row, some with a branch around them, before a trained layer."""

    def __init__(self, layers: list[nn.Module], skips: list[bool]) -> None:
        super().__init__()
        self.layers, self.skips = nn.ModuleList(layers), skips
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer, skips in zip(self.layers, self.skips, strict=True):
            y = layer(x)
            x = x + y if skips else y
        return self.last(x)


@st.composite
def convolutions(draw, inputs: int) -> nn.Module:
    axes = []
    for _ in range(2):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        axes.append((kernel, draw(st.integers(1, 3)), draw(st.integers(0, dilation * (kernel - 1))), dilation))
    kernel, stride, padding, dilation = zip(*axes, strict=True)
    groups = draw(st.sampled_from([1, 2, 4])) if inputs == 4 else 1
    return nn.Conv2d(inputs, 4, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))


@st.composite
def poolings(draw) -> nn.Module:
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, kernel // 2))
    if draw(st.booleans()):
        return nn.AvgPool2d(kernel, stride, padding)
    return nn.MaxPool2d(kernel, stride, padding, draw(st.integers(1, 2)), ceil_mode=draw(st.booleans()))


@st.composite
def networks(draw) -> nn.Module:
    layers, skips = [draw(convolutions(3))], [False]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["convolution", "same", "same", "pooling", "norm", "activation"]))
        layer = {
            "convolution": convolutions(4),
            "pooling": poolings(),
            "norm": st.just(nn.BatchNorm2d(4)),
            "same": st.integers(1, 4).map(lambda kernel: nn.Conv2d(4, 4, kernel, padding="same")),
            "activation": st.sampled_from([nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(), nn.GELU(), nn.Identity()]),
        }[kind]
        layers.append(draw(layer))
        skips.append(kind == "same" and draw(st.booleans()))
    return Drawn(layers, skips)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(networks(), st.integers(2, 4), st.integers(1, 2), st.integers(9, 20), st.integers(9, 20))
def test_tiles_of_any_geometry_are_the_whole_in_the_predicted_bytes(model, count, batch, rows, columns):
    x = torch.randn(batch, 3, rows, columns, dtype=torch.float64)
    model = model.double().eval().requires_grad_(False)
    model.last.requires_grad_()
    for norm in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    parts = split(model)
    assert parts is not None
    try:
        parts.prefix(x)
    except RuntimeError:
        # PyTorch refuses maps that are smaller than a window.
        return
    check_all(parts, count, x, 1e-10)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_real_networks_in_tiles_train_as_they_do_whole_in_less(build):
    torch.manual_seed(0)
    whole = build()
    model = copy.deepcopy(whole)
    gradients = []
    for each, tiles in ((whole, 0), (model, 2)):
        train(tiled(each, tiles), X, Y)
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert float((gradients[1][name] - gradient).norm()) <= 1e-4 * float(gradient.norm()), name
    parts = split(model)
    assert parts is not None
    check_all(parts, 1, X, 1e-4)
    least = min(check_all(parts, 3, X, 1e-4, every=6), key=lambda choice: choice.rank)
    assert least.peak_bytes < 0.6 * peak(model, parts.prefix, X)
    assert peak(model, TiledPrefix(parts, 3), X) == least.peak_bytes
    assert best_tiles(parts, tuple(X.shape)) > 1


def test_the_best_of_each_number_of_tiles_is_found_without_the_others():
    model = tiled(NETWORKS["mcunet"](), 2)
    parts, shape = split(model), (2, 3, 64, 64)
    assert parts is not None
    counts = [1, 2, 3]
    least = [min(tilings(parts, shape, counts=[count]), key=lambda choice: choice.rank) for count in counts]
    assert least_tilings(parts, shape, counts=counts) == least


def test_tiles_and_chunks_together_take_less():
    torch.manual_seed(0)
    model = tiled(NETWORKS["mobilenet_v2"](), 2, chunk=1)
    x, y = X.repeat(2, 1, 1, 1), Y.repeat(2)
    parts = split(model)
    assert parts is not None

    def peak_of(chunk: int, tiles: int) -> int:
        prefix = TiledPrefix(parts, tiles)
        return peak(model, lambda x: in_chunks(prefix, x, chunk), x)

    assert peak_of(1, 2) < min(peak_of(1, 0), peak_of(0, 2)) < peak_of(0, 0)
    step = measure(model, lambda: train(model, x, y), (x, y)).peak_bytes
    assert step < measure(tiled(model, 0), lambda: train(model, x, y), (x, y)).peak_bytes


def test_blocks_that_run_in_streams_run_in_tiles_too():
    torch.manual_seed(0)
    whole = NETWORKS["mobilenet_v2"]()
    model = copy.deepcopy(whole)
    train(tiled(whole, 0), X, Y)
    train(tiled(model, 2, room=10_000), X, Y)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            assert float((one.grad - other.grad).norm()) <= 1e-4 * float(other.grad.norm())


@pytest.mark.parametrize("room", [1, 4_000, 100_000])
def test_blocks_in_streams_take_the_predicted_bytes_whole_and_after_tiles(room):
    torch.manual_seed(0)
    # The small one: a stem in streams, residuals, no expansion; MCUNet: kernels of 3 to 7.
    mcunet = [(NETWORKS["mcunet"](), 2)] if room > 1 else []
    for model, batch in [(small(), 1), (small(), 3), *mcunet]:
        x = torch.randn(batch, 3, 27, 30)
        parts = split(tiled(model, 1, layers=2, room=room))
        assert parts is not None
        whole = check_all(parts, 1, x, 1e-4)
        assert peak(model, parts.prefix, x) >= whole[0].peak_bytes
        tiles = check_all(parts, 2, x, 1e-4, every=3)
        assert all(choice.steps for choice in tiles)


@pytest.mark.parametrize("activation", ["gelu", "relu", "none"])
def test_any_block_in_streams_takes_the_predicted_bytes(activation):
    torch.manual_seed(0)
    settings = {"activation": activation, "norm": activation != "none", "bias": True}
    blocks = InvertedResidual(5, 12, 5, **settings), InvertedResidual(5, 0, 5, stride=2, **settings)
    for batch, room in ((1, 1), (2, 1_000), (2, 10_000)):
        model = tiled(residuals(nn.Conv2d(4, 5, 1), *blocks, nn.Conv2d(5, 6, 1)), 1, layers=1, room=room)
        parts = split(model)
        assert parts is not None
        for count in (1, 2):
            check_all(parts, count, torch.randn(batch, 3, 15, 18), 1e-4)


def test_what_needs_whole_maps_ends_the_tiles():
    torch.manual_seed(0)
    model = tiled(mobilenet_v3_small(num_classes=4, width_mult=0.25), 2)
    parts = split(model)
    assert parts is not None
    choices = check_all(parts, 2, X, 1e-4)
    assert {choice.last for choice in choices} <= {"features.0.2", "features.1.block.0.2"}


def test_modules_with_hooks_see_whole_maps():
    torch.manual_seed(0)
    model, seen = tiled(NETWORKS["mobilenet_v2"](), 2), []
    for name in ("features.2.conv.1.0", "features.4"):
        model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output.shape[2:]))
    train(model, X, Y)
    assert seen == [(17, 16), (9, 8)]


def test_random_networks_have_the_same_outputs():
    compared = 0
    for seed in range(40):
        model = network(seed)
        try:
            fedact.compress(model, "exact", layers=seed % 3)
        except fedact.ConfigError:
            continue
        parts = split(model)
        if parts is None:
            continue
        x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
        expected = parts.prefix(x.clone())
        for count in (1, 2, 3):
            for one, other in zip(TiledPrefix(parts, count)(x.clone()), expected, strict=True):
                torch.testing.assert_close(one, other)
            compared += 1
    assert compared >= 60


def test_memory_formats_stay_as_they_are():
    model = tiled(NETWORKS["mobilenet_v2"](), 3)
    parts, x = split(model), X.contiguous(memory_format=torch.channels_last)
    assert parts is not None
    for one, other in zip(TiledPrefix(parts, 3)(x), parts.prefix(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.stride() == other.stride()


def test_autocast_and_transforms_run_whole_maps():
    torch.manual_seed(0)
    model = tiled(NETWORKS["mobilenet_v2"](), 2)
    whole = tiled(copy.deepcopy(model), 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(X), whole(X))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def loss(model: nn.Module, weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, X).square().sum()

    one, other = (torch.func.grad(loss, argnums=1)(each, weights) for each in (model, whole))
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in weights)


def test_restore_leaves_no_trace():
    model = NETWORKS["mobilenet_v2"]()
    before, keys = [(type(each), sorted(vars(each))) for each in model.modules()], list(model.state_dict())
    train(tiled(model, 2), X, Y)
    assert list(model.state_dict()) == keys
    fedact.restore(model)
    assert [(type(each), sorted(vars(each))) for each in model.modules()] == before


def test_a_plan_brings_its_tiles():
    plan = make_plan(planned.net(), None, planned.batch(8), "exact", 1, "peak")
    assert plan.tiles == 0
    assert fedact.Plan.from_json(replace(plan, tiles=3).to_json()).tiles == 3
    models = [fedact.apply(planned.net(), replace(plan, tiles=tiles)) for tiles in (0, 3)]
    whole, tiles = (planned.step(model, *planned.batch(8, 1)) for model in models)
    assert (tiles.saved_bytes, tiles.by_layer) == (whole.saved_bytes, whole.by_layer)
    assert tiles.peak_bytes <= whole.peak_bytes


@pytest.mark.parametrize(
    ("first", "reason"),
    [(nn.AdaptiveAvgPool2d(4), "0 needs whole maps"), (nn.ReLU(), "no convolution runs there")],
)
def test_what_cannot_be_tiled_is_refused_in_one_line(first, reason):
    model = nn.Sequential(first, nn.Conv2d(3, 4, 1), nn.Flatten(), nn.LazyLinear(2))
    model(torch.rand(1, 3, 4, 4))
    with pytest.raises(fedact.ConfigError, match=f"^tiles=2: nothing before .* can be tiled \\({reason}\\): give tiles=0$"):
        tiled(model, 2, layers=1)
    parts = split(fedact.compress(model, "exact", layers=1))
    assert parts is not None
    assert best_tiles(parts, (1, 3, 4, 4)) == 0
