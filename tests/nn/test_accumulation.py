"""A large weight's gradient is added to what the weight has, without a second tensor, and is autograd's."""

import copy
import warnings
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fedact
from fedact.compression import METHODS
from fedact.compression.accumulation import add_weight_gradient, is_large
from fedact.compression.exact import Exact
from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.operations import Convolution
from fedact.nn.layers.accumulation import ParameterGradient

GEOMETRIES = [
    {"kernel_size": 3}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (1, 2)}, {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2}, {"kernel_size": 4, "padding": "same"}, {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, {"kernel_size": 3, "groups": 12},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, {"kernel_size": 1, "padding": 1},
]  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("outputs", "size", "batch"), [(600, 5, 1), (600, 5, 3), (24, 12, 1), (24, 12, 2)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_what_is_added_is_autograds_gradient(geometry, outputs, size, batch, order):
    torch.manual_seed(0)
    layer = nn.Conv2d(12, outputs, bias=False, dtype=torch.float64, **geometry)
    x = torch.randn(batch, 12, size, size, dtype=torch.float64).contiguous(memory_format=order)
    y = layer(x)
    gradient = torch.randn_like(y)
    total = ParameterGradient(nn.Parameter(torch.zeros_like(layer.weight)))
    total.add(torch.randn_like(layer.weight))
    (expected,) = torch.autograd.grad(y, layer.weight, gradient)
    expected = total.tensor() + expected
    add_weight_gradient(total, Convolution.of(layer), x, gradient, layer.weight.detach())
    torch.testing.assert_close(total.tensor(), expected)


def test_a_matrix_products_gradient_is_added():
    total, x, gradient = ParameterGradient(nn.Parameter(torch.zeros(4, 3))), torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    expected = torch.einsum("bni,bno->oi", x, gradient)
    add_weight_gradient(total, MatrixProduct(), x, gradient, torch.zeros(4, 3))
    torch.testing.assert_close(total.tensor(), expected)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, 40)).eval()


X, Y = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 30])
LARGE = ("3.weight", "5.weight", "7.weight")


def loss(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    return F.cross_entropy(model(x), Y)


def expected(layers: int = 2) -> dict[str, torch.Tensor]:
    plain = network()
    trained = fedact.compress(network(), "vanilla", layers=layers)
    names = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss(plain), [plain.get_parameter(name) for name in names])
    return dict(zip(names, gradients, strict=True))


def check(gradients, times=1):
    wanted = expected()
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, times * wanted[name])


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_weights_are_large():
    sizes = {name: network().get_parameter(name) for name in LARGE}
    maps = (torch.Size([2, 16, 5, 5]), 128), (torch.Size([2, 128, 3, 3]), 128), (torch.Size([2, 128 * 9]), 40)
    for weight, (x, channels) in zip(sizes.values(), maps, strict=True):
        assert is_large(weight, x, torch.empty(2, channels, *x[2:]))
    assert not is_large(torch.empty(128, 128, 1, 1), torch.Size([16, 128, 5, 5]), torch.empty(16, 128, 5, 5))


@pytest.mark.parametrize("method", ["exact", "exact:derive=2", "checkpoint", "hosvd:variance=1.0", "svd:variance=1.0"])
def test_gradients_add_up(method):
    model = fedact.compress(network(), method, layers=2)
    buffers = {}
    for times in (1, 2, 3):
        loss(model).backward()
        gradients = {name: parameter.grad for name, parameter in trained(model).items()}
        check(gradients, times)
        assert all(buffers.setdefault(name, gradient) is gradient for name, gradient in gradients.items())


@pytest.mark.parametrize("method", ["exact", "exact:derive=2", "hosvd:variance=1.0"])
def test_a_gradient_that_is_asked_for_is_returned(method):
    model = fedact.compress(network(), method, layers=2)
    parameters = trained(model)
    check(dict(zip(parameters, torch.autograd.grad(loss(model), list(parameters.values())), strict=True)))
    assert all(parameter.grad is None for parameter in model.parameters())
    x = X.clone().requires_grad_()
    torch.autograd.grad(loss(model, x), x)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_backward_pass_for_some_inputs_leaves_the_others_alone():
    model = fedact.compress(network(), "exact", layers=2)
    parameters = trained(model)
    loss(model).backward(inputs=[parameters["5.weight"], parameters["7.bias"]])
    found = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    assert found.keys() == {"5.weight", "7.bias"}
    check(found | {name: gradient for name, gradient in expected().items() if name not in found})


def test_hooks_are_given_the_gradient():
    model = fedact.compress(network(), "exact", layers=2)
    parameters, seen, after = trained(model), {}, []
    for name, parameter in parameters.items():
        parameter.register_hook(lambda gradient, name=name: seen.__setitem__(name, gradient.clone()))
    parameters["3.weight"].register_post_accumulate_grad_hook(lambda parameter: after.append(parameter.grad.clone()))
    loss(model).backward()
    check(seen)
    torch.testing.assert_close(after, [expected()["3.weight"]])


def test_the_same_graph_may_run_twice_and_be_differentiated():
    model = fedact.compress(network(), "exact", layers=2)
    value = loss(model)
    value.backward(retain_graph=True)
    value.backward()
    check({name: parameter.grad for name, parameter in trained(model).items()}, 2)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()
    model.zero_grad()
    with warnings.catch_warnings():  # PyTorch's, of create_graph: once a process.
        warnings.simplefilter("ignore")
        loss(model).backward(create_graph=True)
    assert trained(model)["7.weight"].grad.requires_grad


def test_other_weights_than_the_models_get_their_gradients():
    model = fedact.compress(network(), "exact", layers=2)
    leaves = {name: parameter.detach().clone().requires_grad_() for name, parameter in trained(model).items()}
    doubled = {name: 2 * (leaf / 2) for name, leaf in leaves.items()}
    for given in (leaves, doubled):
        F.cross_entropy(functional_call(model, given, (X,)), Y).backward()
    check({name: leaf.grad for name, leaf in leaves.items()}, 2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_that_runs_twice_has_the_sum():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64 * 4, 3)

        def forward(self, x):
            return self.head(self.convolution(self.convolution(x)).flatten(1))

    torch.manual_seed(0)
    plain, x = Twice(), torch.randn(1, 64, 2, 2)
    model = fedact.compress(copy.deepcopy(plain), "exact", layers=1)
    for each in (plain, model):
        each(x).square().sum().backward()
    for (name, parameter), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


def test_no_second_tensor_of_the_weights_size_is_alive():
    # One convolution, 64 to 128 channels, 3 x 3 on 3 x 3 pixels; its weight has 294,912 bytes.
    model = nn.Sequential(nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fedact.compress(model, "exact", layers=1)
    x = torch.randn(1, 64, 3, 3)
    with fedact.measure_memory(model, inputs=x) as memory:
        model(x).backward(torch.ones(1, 128))
    # Alive in the weight gradient: the output's gradient, 4,608 bytes; the columns of as many channels as twice fit 65,536,
    # here all 64: 64 x 9 x 9 x 4 = 20,736; and the output and the gradient that backward() starts from, 512 each.
    assert memory.peak_bytes == 4_608 + 20_736 + 2 * 512


class Tokens(nn.Module):
    """One linear layer on tokens, 768 to 600 channels, whose weight has 1,843,200 bytes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(768, 600), nn.Linear(600, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Pointwise(nn.Module):
    """The same as a 1 x 1 convolution of maps of 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(768, 600, 1), nn.Linear(600, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean((2, 3)))


@pytest.mark.parametrize(("network", "shape"), [(Tokens, (2, 4, 768)), (Pointwise, (2, 768, 2, 2))])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("vanilla", "checkpoint")])
def test_nor_is_one_of_a_weight_that_channels_are_multiplied_by_in_any_method(method, network, shape):
    torch.manual_seed(0)
    model, x = fedact.compress(network(), method, layers=1), torch.randn(shape)
    model.layer.codec.reset(seed=0)
    # Asked for, a gradient is returned, and added to nothing.
    (expected,) = torch.autograd.grad(model(x).sum(), model.layer.weight)
    for times in (1, 2):
        model.layer.codec.reset(seed=0)
        with fedact.measure_memory(model, inputs=x) as memory:
            model(x).sum().backward()
        # The input and the output, and what the method works with.
        assert memory.peak_bytes < 8 * (x.nbytes + 2 * 4 * 600 * 4) < model.layer.weight.nbytes / 4
        torch.testing.assert_close(model.layer.weight.grad, times * expected)


class Held(Exact):
    """A method of somebody's own that hands out a weight gradient, and holds it."""

    traits = replace(Exact.traits, keeps_input=False)
    held: ClassVar[list[torch.Tensor]] = []

    def weight_gradient(self, compressed, grad_output, weight, operation):
        self.held.append(super().weight_gradient(compressed, grad_output, weight, operation))
        return self.held[-1]


def test_a_gradient_that_a_method_holds_is_added_and_left_alone():
    model, x = fedact.compress(Tokens(), Held(), layers=1), torch.randn(2, 4, 768)
    for times in (1, 2):
        model(x).sum().backward()
        torch.testing.assert_close(model.layer.weight.grad, times * Held.held[-1])
