"""Norms of each example's own statistics: autograd's gradients, at what the method shows of their input."""

import copy
import warnings

import pytest
import torch
from timm.layers import GroupNorm1
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

import fedact
from fedact.compression import make_method
from fedact.compression.matrix_product import channels_last, channels_second
from fedact.nn.layers import CodecLayer
from fedact.nn.layers.base import ChannelNorm
from tests.support.laws import ALONE, relative_error
from tests.support.portions import rotated

NORMS = {
    "tokens": (lambda: nn.LayerNorm(6), (3, 5, 6)),
    "features": (lambda: nn.LayerNorm(6), (4, 6)),
    "last two dimensions, no shift": (lambda: nn.LayerNorm((5, 6), bias=False), (3, 5, 6)),
    "channels last": (lambda: nn.LayerNorm(6, elementwise_affine=False), (2, 4, 4, 6)),
    "channels": (lambda: ChannelNorm(6), (2, 6, 4, 5)),
    "torchvision's": (lambda: LayerNorm2d(6), (2, 6, 4, 5)),
    "timm's": (lambda: TimmLayerNorm(6), (3, 5, 6)),
    "timm's, channels": (lambda: TimmLayerNorm2d(6), (2, 6, 4, 5)),
    "timm's, one group": (lambda: GroupNorm1(6), (2, 6, 4, 5)),
    "root mean square": (lambda: nn.RMSNorm(6), (3, 5, 6)),
    "groups of series": (lambda: nn.GroupNorm(3, 6), (3, 6, 9)),
    "groups of pictures": (lambda: nn.GroupNorm(2, 6), (2, 6, 4, 5)),
    "groups of features": (lambda: nn.GroupNorm(2, 6, affine=False), (3, 6)),
    "series": (lambda: nn.InstanceNorm1d(6, affine=True), (3, 6, 9)),
    "pictures": (lambda: nn.InstanceNorm2d(6), (2, 6, 4, 5)),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(name: str) -> tuple[nn.Module, Tensor]:
    """Return a norm with weights that are not all alike, and an input of it that is not centred."""
    build, shape = NORMS[name]
    layer = build().double()
    for place, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(1 + normal(*parameter.shape, seed=place))
    return layer, 2 + 3 * normal(*shape, seed=5)


def backward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(normal(*y.shape, seed=1))
    return y.detach(), leaf.grad


def wrapped(layer: nn.Module, text: str) -> nn.Module:
    return fedact.compress(nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 3)), text, layers=1)[1]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kept_as_it_is_the_gradient_is_autograds_in_fewer_bytes(name, layout):
    layer, x = norm(name)
    x = x.contiguous(memory_format=layout) if x.dim() == 4 else x
    expected = backward(copy.deepcopy(layer), x)
    lean = wrapped(layer, "exact")
    assert isinstance(lean, CodecLayer)
    for ours, theirs in zip(backward(lean, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        lean(x.clone().requires_grad_())
    assert sum(tensor.nbytes for tensor in saved) == x.nbytes + sum(p.nbytes for p in lean.parameters())


def parts(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a view of x as (examples, ...), the dimensions behind the first being those of one mean and deviation."""
    if isinstance(layer, ChannelNorm | LayerNorm2d | TimmLayerNorm2d):
        return x.permute(0, 2, 3, 1)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return x.flatten(-len(layer.normalized_shape)) if len(layer.normalized_shape) > 1 else x
    return x.reshape(len(x), layer.num_groups if isinstance(layer, nn.GroupNorm) else layer.num_features, -1)


def with_statistics_of(layer: nn.Module, shown: Tensor, x: Tensor) -> Tensor:
    """Return what a method shows, with the means and deviations of x itself; of a root mean square norm, its lengths."""
    seen, exact = parts(layer, shown), parts(layer, x)
    if isinstance(layer, nn.RMSNorm):
        found = seen * (exact.norm(dim=-1, keepdim=True) / seen.norm(dim=-1, keepdim=True))
    else:
        ratio = exact.std(-1, keepdim=True) / seen.std(-1, keepdim=True)
        found = exact.mean(-1, keepdim=True) + (seen - seen.mean(-1, keepdim=True)) * ratio
    is_channels = isinstance(layer, ChannelNorm | LayerNorm2d | TimmLayerNorm2d)
    return found.permute(0, 3, 1, 2) if is_channels else found.reshape(x.shape)


def shown_by(lean: nn.Module, layer: nn.Module, text: str, x: Tensor) -> Tensor:
    method, last = make_method(text).for_dimensions(x.dim()), isinstance(layer, nn.LayerNorm | nn.RMSNorm)
    last = last and not isinstance(layer, ChannelNorm | LayerNorm2d | TimmLayerNorm2d)
    seed = lean.codec.seed if method.traits.saves_less else 0
    shown = method.reconstruct(method.compress(channels_second(x) if last else x, method.start(seed)))
    return channels_last(shown) if last else shown


def mean_squares(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a norm divides by, squared, without eps."""
    each = parts(layer, x)
    return (
        each.square().mean(-1, keepdim=True) if isinstance(layer, nn.RMSNorm) else each.var(-1, correction=0, keepdim=True)
    )


@rotated(3, text=dict.fromkeys(ALONE), name=NORMS)
def test_the_gradient_is_that_of_what_the_method_shows_in_the_exact_length(text, name):
    layer, x = norm(name)
    plain, lean = copy.deepcopy(layer), wrapped(layer, text)
    shown = shown_by(lean, plain, text, x)
    y, grad_input = backward(lean, x)
    assert torch.equal(y, plain(x))
    eps = torch.finfo(x.dtype).eps if plain.eps is None else plain.eps
    ratio = ((mean_squares(plain, shown) + eps) / (mean_squares(plain, x) + eps)).sqrt()
    assert relative_error(parts(plain, grad_input), parts(plain, backward(plain, shown)[1]) * ratio) < 1e-6


@pytest.mark.parametrize("name", NORMS)
def test_it_is_autograds_at_what_is_shown_with_the_means_and_deviations_of_the_input(name):
    layer, x = norm(name)
    layer.eps = 1e-12
    plain, lean = copy.deepcopy(layer), wrapped(layer, "quantize:bits=4")
    shown = shown_by(lean, plain, "quantize:bits=4", x)
    expected = backward(plain, with_statistics_of(plain, shown, x))[1]
    assert relative_error(backward(lean, x)[1], expected) < 1e-6
    assert relative_error(backward(plain, shown)[1], expected) > 1e-3


@pytest.mark.parametrize("name", NORMS)
def test_a_method_with_loss_saves_one_number_more_for_each_deviation(name):
    layer, x = norm(name)
    plain, lean = copy.deepcopy(layer), wrapped(layer, "quantize:bits=4")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        lean(x.clone().requires_grad_())
    beside = sum(p.nbytes for p in lean.parameters()) + lean.codec.method.predicted_bytes(channels_second(x))
    assert sum(tensor.nbytes for tensor in saved) - beside == parts(plain, x)[..., 0].nbytes


def test_small_tokens_among_large_ones_have_their_gradient():
    torch.manual_seed(0)
    x = torch.randn(4, 16, 32) * torch.logspace(-1.5, 0.5, 16).view(1, -1, 1)
    plain, lean = nn.LayerNorm(32), wrapped(nn.LayerNorm(32), "quantize:bits=2")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    upstream = torch.randn(4, 16, 32)
    for module, leaf in zip((plain, lean), leaves, strict=True):
        module(leaf).backward(upstream)
    assert relative_error(leaves[1].grad, leaves[0].grad) < 0.3


@pytest.mark.parametrize("name", ["tokens", "groups of series", "root mean square", "pictures", "torchvision's"])
def test_second_derivatives_are_autograds_where_the_input_is_kept(name):
    layer, x = norm(name)
    found = []
    for module in (copy.deepcopy(layer), wrapped(layer, "exact")):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf).sin().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    torch.testing.assert_close(*found)


def test_a_norm_with_running_statistics_of_instances_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.Conv2d(4, 4, 3))
    with pytest.warns(UserWarning, match=r"1 \(InstanceNorm2d\)"):
        fedact.compress(model, "exact", layers=2)


def test_restored_norms_are_the_plain_ones():
    model = nn.Sequential(nn.Linear(6, 6), *(norm(name)[0] for name in NORMS))
    kinds = [type(module) for module in model]
    fedact.restore(fedact.compress(model, "hosvd", layers=0))
    assert [type(module) for module in model] == kinds


@pytest.mark.parametrize("name", ["channels", "torchvision's", "timm's, channels", "timm's"])
def test_nothing_is_said_of_a_norm_that_is_replaced(name):
    with warnings.catch_warnings(action="error"):
        fedact.compress(nn.Sequential(nn.Conv2d(3, 3, 1), norm(name)[0]), "hosvd", layers=1)


def test_a_plan_keeps_the_input_of_torchvisions_norm_through_its_method():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), LayerNorm2d(6), nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3), nn.Flatten()
    model, example = nn.Sequential(*layers, nn.Linear(24, 2)), (torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    plan = fedact.make_plan(model, None, example, "hosvd:variance=0.8", layers=3)
    assert {"1", "3"} <= {kept.name for kept in plan.kept}
    with fedact.measure_memory(fedact.apply(model, plan), inputs=example) as memory:
        nn.functional.cross_entropy(model(example[0]), example[1]).backward()
    assert memory.saved_bytes <= plan.saved_bytes
    assert dict(memory.by_layer)["1"] == dict(plan.by_layer)["1"]


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm3d(3)], ids=["channels", "volume"])
def test_one_example_without_a_batch_is_normalised_by_channel(norm):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 2, 1), nn.Flatten(0), nn.Linear(32, 2)),
        torch.rand(3, 4, 4),
    )
    if isinstance(norm, nn.InstanceNorm3d):
        # Three examples of four channels are a volume of three channels to it.
        model[3], x = nn.Flatten(), torch.rand(3, 3, 4, 4)
    gradients = {}
    for method in ("vanilla", "exact"):
        fedact.compress(model.double(), method, layers=2).zero_grad()
        model(x.double()).square().sum().backward()
        gradients[method] = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(gradients["exact"], gradients["vanilla"])


TRAINED = {
    "tokens": lambda: (nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6), nn.Flatten(), nn.Linear(30, 2)),
    "pictures": lambda: (
        nn.Conv2d(5, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 2),
    ),
    "no shift": lambda: (nn.Linear(6, 6), nn.RMSNorm(6), nn.Linear(6, 6), nn.Flatten(), nn.Linear(30, 2)),
}  # fmt: skip


def norm_and_input(name: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6), *TRAINED[name]()).double()
    return model, normal(4, 5, 6, 6) if name == "pictures" else normal(4, 5, 6)


def gradients_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_their_scale_and_shift_have_autograds_gradients(name):
    model, x = norm_and_input(name)
    expected = gradients_of(copy.deepcopy(model), x)
    for method in ("vanilla", "exact", "hosvd:variance=0.7"):
        lean = fedact.compress(copy.deepcopy(model), method, layers=2, train_norm=True)
        found = gradients_of(lean, x)
        # All but the norm before the first trained layer.
        assert set(found) == {key for key in expected if not key.startswith("0.")}
        off = {key: relative_error(found[key], expected[key]) for key in found}
        assert max(off.values()) < 1e-10 if method in ("vanilla", "exact") else 0 < off["2.weight"] < 0.9
        frozen = fedact.compress(lean, method, layers=2)
        assert not any(parameter.requires_grad for key, parameter in frozen.named_parameters() if key.startswith("2."))
        assert all(parameter.requires_grad for parameter in fedact.restore(frozen).parameters())


@pytest.mark.parametrize("method", ["exact", "hosvd"])
def test_plans_train_them_too(method):
    model, x = norm_and_input("tokens")
    model, example = model.float(), (x.float(), torch.tensor([0, 1, 0, 1]))
    plan = fedact.make_plan(model, "6KB", example, method, layers=2, train_norm=True)
    assert plan.example_norms
    assert fedact.Plan.from_json(plan.to_json()) == plan
    trained = fedact.apply(copy.deepcopy(model), plan)
    assert all(parameter.requires_grad for parameter in trained[2].parameters())
    loss = nn.functional.cross_entropy
    part = example[0][: plan.micro_batch], example[1][: plan.micro_batch]
    with fedact.measure_memory(trained, inputs=part) as memory:
        loss(trained(part[0]), part[1]).backward()
    assert (memory.saved_bytes, memory.peak_bytes) == (plan.saved_bytes, plan.peak_bytes)
    assert not fedact.make_plan(model, "6KB", example, method, layers=2).example_norms
