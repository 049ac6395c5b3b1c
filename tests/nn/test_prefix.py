"""The frozen part and the trained one, apart: the same outputs and gradients as together, in whatever pieces."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet121, mobilenet_v2, mobilenet_v3_small, resnet18, resnet34, shufflenet_v2_x0_5

import fedact
from fedact.nn.prefix.chunks import examples_are_independent, in_chunks
from fedact.nn.prefix.split import split
from fedact.nn.surgery import trained_parameters
from tests.support import planned
from tests.support.laws import relative_error
from tests.support.networks import chunked, train

X, Y = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 4
CHUNKS = [1, 2, 3, 7]


def narrow() -> nn.Module:
    return mobilenet_v2(num_classes=4, width_mult=0.35)


def built(build) -> nn.Module:
    torch.manual_seed(0)
    return build() if build in (narrow, Functional, planned.Net) else build(num_classes=4)


class Functional(nn.Module):
    """Functions between the layers, the batch's size asked for first and used last, and four values that cross."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.left, self.right, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("shift", torch.rand(6, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        count, shortcut = x.shape[0], F.avg_pool2d(x.mean(1, keepdim=True), 3, 2)
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        gate = torch.sigmoid(x.flatten(1).mean(1))
        y = self.left(x) * self.scale + self.shift if bias is None else self.left(x) + bias
        y = y.mul_(gate.view(count, 1, 1, 1)) + x + self.right(F.relu(y)) + shortcut
        return self.head(y.mean((2, 3)).view(count, -1))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    train(model, X, Y)
    return {name: parameter.grad.clone() for name, parameter in trained_parameters(model).items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert actual.keys() == expected.keys()
    assert all(relative_error(actual[name], expected[name]) < tolerance for name in expected)


CASES = [
    (narrow, 4, 1), (narrow, 0, 1), (resnet18, 4, 2), (resnet34, 3, 2), (densenet121, 3, 15), (shufflenet_v2_x0_5, 3, 2),
    (Functional, 2, 4), (Functional, 0, 1), (planned.Net, 2, 1), (planned.Net, 3, 1),
]  # fmt: skip


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("build", "layers", "crossing"), CASES)
def test_outputs_and_gradients_are_the_same_for_any_chunk(build, layers, crossing, chunk):
    model = chunked(built(build), 0, layers=layers)
    expected, output = gradients(model), model(X)
    assert len(split(model).prefix(X)) == crossing
    chunked(model, chunk, layers=layers)
    assert torch.allclose(model(X), output, rtol=1e-4, atol=1e-5)
    assert_close(gradients(model), expected)


SETTINGS = [("exact:derive=2", False), ("exact", True), ("vanilla", False), ("vanilla", True), ("checkpoint", False)]


@pytest.mark.filterwarnings("ignore:not compressed")
@pytest.mark.parametrize(("method", "train_norm"), [*SETTINGS, ("exact:derive=2", True), ("checkpoint:children=2", True)])
@pytest.mark.parametrize("build", [narrow, resnet18, resnet34, mobilenet_v3_small])
def test_every_way_to_keep_gets_the_same_gradients(build, method, train_norm):
    model = built(build)
    expected = gradients(chunked(model, 0, method, 5, train_norm))
    assert_close(gradients(chunked(model, 2, method, 5, train_norm)), expected, 1e-4)


TRAINED = [
    (narrow, "features.17.conv.1.0.weight"), (resnet18, "layer4.0.conv2.weight"), (Functional, "left.bias"),
    (Functional, "scale"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "trained"), TRAINED)
def test_the_tail_of_the_prefix_is_the_model(build, trained):
    model = built(build).eval().requires_grad_(False)
    model.get_parameter(trained).requires_grad_()
    parts = split(model)
    assert torch.equal(parts.suffix(*parts.prefix(X)), model(X))
    assert all(not value.requires_grad for value in parts.prefix(X))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(in_chunks(parts.prefix, X, 2), parts.prefix(X), strict=True))


def test_memory_formats_and_autocast_stay_as_they_are():
    model = chunked(built(narrow), 0)
    x = X.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        at_once, pieces = split(model).prefix(x)[0], in_chunks(split(model).prefix, x, 2)[0]
    assert (pieces.dtype, pieces.stride()) == (torch.bfloat16, at_once.stride())
    assert pieces.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(pieces, at_once) < 0.05


def test_a_layer_that_is_unfrozen_later_is_trained():
    model = chunked(built(narrow), 1)
    model.features[16].requires_grad_(True)
    expected = gradients(fedact.restore(copy.deepcopy(model)).eval())
    actual = gradients(model)
    assert relative_error(actual["features.16.conv.2.weight"], expected["features.16.conv.2.weight"]) < 1e-4


class Way(nn.Module):
    """Four convolutions, and a way through them."""

    def __init__(self, way) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.norm = way, nn.BatchNorm2d(4, track_running_stats=False)
        self.first, self.second, self.third = (nn.Conv2d(channels, 4, 3) for channels in (3, 4, 4))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self, x).mean((2, 3)))


def branches(net, x):
    x = net.second(net.first(x))
    return net.third(x) if x.sum() > 0 else net.third(-x)


def some_examples(net, x):
    x = net.second(net.first(x))
    chosen = x[x.mean((1, 2, 3)) > x.mean()]
    return net.third(x) * chosen.mean()


def batch_norm(net, x):
    return net.third(net.norm(net.second(net.first(x))))


def written_through_a_view(net, x):
    x = net.second(net.first(x))
    flat = x.flatten(1)
    y = net.third(x + 0)
    return y * flat.mul_(2).mean() + x.mean()


def made_on_the_way(net, x):
    return net.third(net.second(net.first(x)) + torch.tensor(2.0))


def changed_inputs_size(net, x):
    x = net.second(net.first(x))
    size = x.shape[0]
    return net.third(x).reshape(size, 4, -1, 1)


@pytest.mark.parametrize("way", [branches, some_examples, batch_norm, written_through_a_view, made_on_the_way])
def test_where_it_cannot_be_cut_the_model_runs_at_once(way):
    expected = gradients(chunked(Way(way), 0, layers=1))
    assert all(torch.equal(g, expected[name]) for name, g in gradients(chunked(Way(way), 2, layers=1)).items())


def test_a_size_that_is_read_before_the_cut_is_that_of_the_whole_batch_after_it():
    model = chunked(Way(changed_inputs_size), 0, layers=1)
    assert all(isinstance(value, Tensor) for value in split(model).prefix(torch.randn(2, 3, 8, 8)))
    expected = gradients(model)
    for name, gradient in gradients(chunked(Way(changed_inputs_size), 2, layers=1)).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize(
    ("way", "cut"), [(branches, False), (batch_norm, False), (made_on_the_way, False), (some_examples, True)]
)
def test_what_no_graph_shows_is_not_split(way, cut):
    assert (split(chunked(Way(way), 0, layers=1)) is not None) == cut


def centred(net, x):
    x = net.second(net.first(x))
    return net.third(x - x.mean(0, keepdim=True))


def ordered(net, x):
    x = net.second(net.first(x))
    return net.third(x[x.mean((1, 2, 3)).argsort()])


def squared(net, x):
    return net.third(net.second(net.first(x)).square())


@pytest.mark.parametrize(("way", "alone"), [(centred, False), (some_examples, False), (ordered, False), (squared, True)])
def test_examples_that_mix_are_told(way, alone):
    assert examples_are_independent(split(chunked(Way(way), 0, layers=1)), X) == alone


@pytest.mark.filterwarnings("ignore:not compressed")
@pytest.mark.parametrize(("build", "layers"), [(planned.Net, 4), (narrow, 52), (resnet18, 20)])
def test_a_first_trained_layer_that_takes_the_input_leaves_nothing_to_split(build, layers):
    model = chunked(built(build), 2, layers=layers)
    assert split(model) is None
    assert torch.equal(model(X), chunked(copy.deepcopy(model), 0, layers=layers)(X))


def test_the_inputs_own_gradient_and_a_second_input_are_no_less_right():
    model = chunked(Functional(), 1, layers=1)
    x, bias = X.clone().requires_grad_(), torch.ones(6, 1, 1)
    (expected,) = torch.autograd.grad(chunked(copy.deepcopy(model), 0, layers=1)(x).sum(), x)
    (actual,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(actual, expected)
    assert not torch.equal(model(X, bias), model(X))
    assert torch.equal(model(X, bias=bias), model(X, bias))


def test_dropout_by_the_models_own_setting_follows_it():
    class Dropped(Way):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(self.first(x), 0.9, training=self.training) if self.training else self.first(x))

    model = chunked(Dropped(lambda net, x: net.third(net.second(x))).eval(), 2, layers=1)
    quiet = model(X)
    assert not torch.allclose(model.train()(X), quiet, atol=1e-3)
    assert torch.equal(model.eval()(X), quiet)
