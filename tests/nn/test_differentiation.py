"""Beyond one backward pass: second derivatives, transforms, compiled, traced and copied models, against plain PyTorch."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fedact
from fedact.models.pixel_loss import pixel_loss
from tests.support.laws import relative_error

EXACT = ["vanilla", "exact", "exact:derive=2", "checkpoint", "checkpoint:children=2"]
LOSSY = ["hosvd:variance=0.9", "gradient_filter", "transform"]
X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.SiLU(), nn.MaxPool2d(2), nn.AvgPool2d(1),
        nn.Conv2d(6, 4, 1), nn.Dropout(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def compressed_and_plain(text: str) -> tuple[nn.Module, nn.Module]:
    """Return a compressed model, and plain PyTorch's in eval mode with the same weights trained."""
    model = fedact.compress(build(), text, layers=3)
    plain = fedact.restore(copy.deepcopy(model)).eval()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        theirs.requires_grad_(ours.requires_grad)
    return model, plain


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def step(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(x), Y), trained(model)))


def penalty(model):
    x = X.clone().requires_grad_()
    loss = F.cross_entropy(model(x), Y)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return torch.autograd.grad(loss + 10 * gradient.square().sum(), trained(model), allow_unused=True)


def squared_gradient(model):
    gradients = torch.autograd.grad(F.cross_entropy(model(X), Y), trained(model), create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), trained(model))


def hessian(model):
    return [torch.autograd.functional.hessian(lambda x: model(x).logsumexp(1).sum(), X[:1])]


def functional_gradient(model):
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return torch.func.grad(lambda w: F.cross_entropy(functional_call(model, w, (X,)), Y))(weights).values()


def gradients_per_example(model):
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    gradient = torch.func.grad(lambda w, x, y: F.cross_entropy(functional_call(model, w, (x[None],)), y[None]))
    return torch.vmap(gradient, (None, 0, 0))(weights, X, Y).values()


def forward_mode(model):
    with forward_ad.dual_level():
        return [forward_ad.unpack_dual(model(forward_ad.make_dual(X, torch.ones_like(X)))).tangent]


SECOND, TRANSFORMS = [penalty, squared_gradient, hessian], [functional_gradient, gradients_per_example, forward_mode]


def anomaly(model):
    with torch.autograd.detect_anomaly(check_nan=True):
        return step(model)


def in_doubles(model):
    return step(copy.deepcopy(model).double(), X.double())


def in_channels_last(model):
    return step(copy.deepcopy(model).to(memory_format=torch.channels_last), X.contiguous(memory_format=torch.channels_last))


def unpickled(model):
    return step(pickle.loads(pickle.dumps(model)))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return step(torch.load(file, weights_only=False))


def in_two_slices(model):
    return step(nn.Sequential(model[:6], model[6:]))


def compiled(model):
    torch._dynamo.reset()
    return step(torch.compile(model, backend="eager"))


def under_checkpoint(reentrant):
    def gradients(model):
        x = model[:2](X).requires_grad_()
        y = model[8:](checkpoint(lambda z: nn.Sequential(*list(model)[2:8])(z), x, use_reentrant=reentrant))
        model.zero_grad()
        F.cross_entropy(y, Y).backward()
        return [parameter.grad for parameter in trained(model)]

    return gradients


ORDINARY = [step, anomaly, in_doubles, in_channels_last, copy.deepcopy, unpickled, saved_whole, in_two_slices]


def assert_same(actual, expected) -> None:
    actual, expected = list(actual), list(expected)
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and relative_error(a.detach(), b.detach()) < 1e-4)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("text", EXACT + LOSSY[:1])
@pytest.mark.parametrize("way", ORDINARY, ids=lambda way: way.__name__)
def test_a_model_that_is_copied_converted_or_cut_trains_as_before(way, text):
    model, plain = compressed_and_plain(text)
    expected = step(model if text in LOSSY else plain)
    assert_same(step(way(model)) if way is copy.deepcopy else way(model), expected)


@pytest.mark.parametrize("text", ["vanilla", "exact", "checkpoint", "checkpoint:children=2"])
@pytest.mark.parametrize("way", SECOND, ids=lambda way: way.__name__)
def test_second_derivatives_are_plain_pytorchs(way, text):
    model, plain = compressed_and_plain(text)
    assert_same(way(model), way(plain))


@pytest.mark.parametrize("text", ["exact:derive=2", *LOSSY])
@pytest.mark.parametrize("way", SECOND, ids=lambda way: way.__name__)
def test_second_derivatives_are_refused_where_they_are_first_asked_for(way, text):
    model, _ = compressed_and_plain(text)
    with pytest.raises(fedact.ConfigError, match=rf"{text}: no second derivatives \(create_graph=True\).*restore"):
        way(model)


def test_second_derivatives_are_refused_of_a_cast_input():
    model = fedact.compress(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 5)), "exact", layers=1)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(fedact.ConfigError, match="no second derivatives"):
        penalty(model)


def test_the_pixel_loss_that_saves_its_gradient_refuses_second_derivatives():
    scores = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = pixel_loss.lean(scores, torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(fedact.ConfigError, match="no second derivatives"):
        torch.autograd.grad(loss, scores, create_graph=True)


@pytest.mark.parametrize("text", EXACT)
@pytest.mark.parametrize("way", TRANSFORMS, ids=lambda way: way.__name__)
def test_transforms_give_plain_pytorchs_gradients(way, text):
    model, plain = compressed_and_plain(text)
    assert_same(way(model), way(plain))


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("way", TRANSFORMS, ids=lambda way: way.__name__)
def test_transforms_are_refused_by_methods_with_loss(way, text):
    model, _ = compressed_and_plain(text)
    with pytest.raises(fedact.ConfigError, match=rf"{text}: torch.func's transforms.*restore"):
        way(model)


@pytest.mark.parametrize("text", ["exact", "checkpoint", "hosvd:variance=0.9"])
def test_weights_that_functional_call_puts_in_get_the_gradient(text):
    model, plain = compressed_and_plain(text)

    def gradients(network):
        weights = {name: (1.5 * p.detach()).requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
        y = functional_call(network, weights, (X,))
        return torch.autograd.grad(F.cross_entropy(y, Y), [w for w in weights.values() if w.requires_grad])

    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    assert_same(gradients(model), step(twin) if text in LOSSY else gradients(plain))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [*EXACT, "hosvd:variance=0.9"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_torchs_own_checkpoint_around_a_part_changes_nothing(reentrant, text):
    model, plain = compressed_and_plain(text)
    assert_same(under_checkpoint(reentrant)(model), step(model if text in LOSSY else plain))


FIRST_COMPILED = ["exact", "hosvd:variance=0.9", "gradient_filter"]
REST = [pytest.param(text, marks=pytest.mark.exhaustive) for text in EXACT + LOSSY if text not in FIRST_COMPILED]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", [*FIRST_COMPILED, *REST])
def test_torch_compile_breaks_its_graphs_at_the_layers_and_trains_as_before(text):
    model, plain = compressed_and_plain(text)
    assert_same(compiled(model), step(model if text in LOSSY else plain))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["exact:derive=2", "checkpoint", *LOSSY])
def test_traces_and_exports_hold_the_plain_layers(text):
    model, plain = compressed_and_plain(text)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, X), file)
    file.seek(0)
    assert torch.allclose(torch.jit.load(file)(X), plain(X), atol=1e-5)
    assert torch.allclose(torch.export.export(model, (X,)).module()(X), plain(X), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ["exact", "checkpoint", "transform"])
def test_scripts_and_data_parallel_copies_are_refused(text):
    model, _ = compressed_and_plain(text)
    with pytest.raises(fedact.ConfigError, match=r"torch.jit.script.*restore"):
        torch.jit.script(model)
    # What nn.parallel.replicate, which wants two devices, asks of every module.
    with pytest.raises(fedact.ConfigError, match=r"nn.DataParallel.*restore"):
        model[9]._replicate_for_data_parallel()
