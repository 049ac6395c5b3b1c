"""Steps that differ from the model's graph, and gradients that enter in the middle: those of plain autograd."""

import copy
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import fedact
from fedact.nn.layers import CodecLayer, RematerializedCodec
from fedact.nn.surgery import trained_parameters
from tests.support.laws import relative_error

METHODS = ["exact", "exact:derive=1", "exact:derive=2", "transform:bits=16", "checkpoint", "hosvd:variance=1.0"]


class Net(nn.Module):
    """Convolutions with something between them that a graph may not see."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.relu, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.Linear(6, 2)
        self.between = between
        self.path = cycle([0, 1, 1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, self.a(x))
        x = self.relu(self.norm(self.b(x)))
        return self.fc(self.c(x).mean((2, 3)))


def in_place(change: Callable[[Tensor], object]) -> Callable[[Net, Tensor], Tensor]:
    def between(_: Net, x: Tensor) -> Tensor:
        change(x)
        return x

    return between


def ignored_relu(net: Net, x: Tensor) -> Tensor:
    F.relu6(x, inplace=True)
    return x


BETWEEN = {
    "mul_": in_place(lambda x: x.mul_(2)),
    "clamp_": in_place(lambda x: x.clamp_(0, 0.5)),
    "iadd": in_place(lambda x: x.__iadd__(1)),
    "relu, in place": in_place(lambda x: F.relu(x, True)),
    "relu, result ignored": ignored_relu,
    "a slice": in_place(lambda x: x[:, :4].zero_()),
    "a view of a view": in_place(lambda x: x.flatten(1)[:, ::2].mul_(3)),
    "data": in_place(lambda x: x.data.mul_(2)),
    "transposed": lambda _, x: x.transpose_(2, 3),
    "without gradients": in_place(torch.no_grad()(lambda x: x.mul_(2))),
    "another path each step": lambda net, x: x * 2 if next(net.path) else x,
    "an activation on some steps": lambda net, x: net.relu(x) if next(net.path) else x,
    "a layer twice": lambda net, x: net.relu(net.relu(x) - 0.1),
}


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    for _ in range(3):
        net(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in trained_parameters(net).items()}


def assert_plain_gradients(build: Callable[[str], nn.Module], method: str) -> None:
    tolerance = 1e-2 if method.startswith("transform") else 1e-4
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = (gradients(build(name), x) for name in (method, "vanilla"))
    assert {name for name in theirs if relative_error(ours[name], theirs[name]) > tolerance} == set()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BETWEEN)
def test_what_happens_between_layers_is_what_the_gradient_sees(name, method):
    assert_plain_gradients(lambda text: fedact.compress(Net(BETWEEN[name]).train(), text, 3), method)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
    second = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 1))
    return nn.Sequential(first, second, nn.Hardswish(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten())


def halved(m: nn.Module, args: object, out: Tensor) -> None:
    # Plain autograd refuses to change what a ReLU saved.
    if not isinstance(m, nn.ReLU):
        out.mul_(0.5)


def hook_tensor(m: nn.Module, args: object, out: Tensor) -> None:
    out.register_hook(lambda gradient: 2 * gradient)


def doubled(m: nn.Module, gradients: tuple[Tensor | None, ...], _: object = None) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else 2 * gradient for gradient in gradients)


HOOKS = {
    "another output": lambda module: module.register_forward_hook(lambda m, args, out: 2 * out),
    "a changed output": lambda module: module.register_forward_hook(halved),
    "another input": lambda module: module.register_forward_pre_hook(lambda m, args: (args[0] + 1,)),
    "backward": lambda module: module.register_full_backward_hook(doubled),
    "before backward": lambda module: module.register_full_backward_pre_hook(lambda m, outer: doubled(m, outer)),
    "on a tensor": lambda module: module.register_forward_hook(hook_tensor),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("before", [True, False], ids=["hooked before", "hooked after"])
def test_hooks_are_what_the_gradient_sees(hook, before, method):
    for place in ("1.0", "1.2", "1", "3", "4", "5"):

        def build(text: str, place: str = place) -> nn.Module:
            model = deep()
            if before:
                HOOKS[hook](model.get_submodule(place))
            fedact.compress(model, text, 4)
            if not before:
                HOOKS[hook](model.get_submodule(place))
            return model

        assert_plain_gradients(build, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_hook_for_all_modules_is_what_the_gradient_sees(method):
    handle = register_module_forward_hook(lambda m, args, out: out * 2 if isinstance(m, nn.ReLU) else None)
    try:
        assert_plain_gradients(lambda text: fedact.compress(deep(), text, 4), method)
    finally:
        handle.remove()


def middle(method: str, place: str, after: bool) -> dict[str, Tensor]:
    """Return the gradients of a loss that is partly on a module's output, and that output's own."""
    model, x, seen = deep(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), []

    def keep(m: nn.Module, args: object, out: Tensor) -> None:
        seen.append(out)

    if not after:
        model.get_submodule(place).register_forward_hook(keep)
    fedact.compress(model, method, 5)
    if after:
        model.get_submodule(place).register_forward_hook(keep)
    y = model(x)
    (own,) = torch.autograd.grad(y.square().sum(), seen[0], retain_graph=True)
    (y.square().sum() + (seen[0] * torch.arange(seen[0].numel()).view_as(seen[0])).sum()).backward()
    return {"own": own} | {name: p.grad for name, p in trained_parameters(model).items() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("after", [True, False], ids=["hooked after", "hooked before"])
def test_a_loss_on_a_tensor_in_the_middle_and_its_gradient_are_plain_autograds(method, after):
    for place in ("1.1", "1.2", "1.0", "2", "3", "4"):
        ours, theirs = middle(method, place, after), middle("vanilla", place, after)
        assert ours.keys() == theirs.keys()
        assert {
            name
            for name in theirs
            if relative_error(ours[name], theirs[name]) > (1e-2 if method.startswith("transform") else 1e-4)
        } == set(), place


def test_a_weight_that_changes_before_its_backward_pass_is_refused():
    model, x = fedact.compress(deep(), "exact:derive=2", 5), torch.randn(2, 3, 6, 6)
    for change in (lambda w: w.mul_(2), lambda w: setattr(w, "data", 2 * w)):
        loss = model(x).sum()
        with torch.no_grad():
            change(model[3].weight)
        with pytest.raises(RuntimeError, match=r"changed|modified by an inplace operation"):
            loss.backward()


def test_what_is_not_proven_is_saved_and_counted():
    x, held = torch.randn(2, 3, 6, 6), {}
    for method in ("exact", "exact:derive=1"):
        model = fedact.compress(deep(), method, 5)
        model[4].register_forward_hook(lambda m, args, out: 2 * out)
        with fedact.measure_memory(model, inputs=x) as memory:
            model(x).sum().backward()
        assert memory.hidden_bytes == 0
        held[method] = memory.by_layer["5"]
    assert held["exact"] == held["exact:derive=1"] > 0


def test_a_copy_knows_nothing_of_the_steps_before():
    model, x, kept = fedact.compress(deep(), "exact:derive=2", 5), torch.randn(2, 3, 6, 6), []
    for module in model.modules():
        module.register_forward_hook(lambda m, args, out: kept.append(out))
    model(x)
    twin = copy.deepcopy(model)
    codecs = [m.codec for m in twin.modules() if isinstance(m, CodecLayer)]
    assert any(isinstance(codec, RematerializedCodec) for codec in codecs)
    assert not any(len(codec.provenance) for codec in codecs)
    assert_plain_gradients(lambda text: copy.deepcopy(fedact.compress(deep(), text, 5)), "exact:derive=2")


class Stashing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x).relu()
        return self.features * 2


def test_checkpoint_refuses_a_tensor_in_an_attribute_that_would_have_no_gradient():
    model = nn.Sequential(Stashing(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))
    fedact.compress(model, "checkpoint", 2)
    with pytest.raises(fedact.ConfigError, match=r"Stashing.features"):
        model(torch.randn(2, 3, 6, 6))
