"""A frozen norm and the ReLU after it as one operation: plain autograd's gradients, the same bytes, and nothing hidden."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fedact
from fedact.nn.layers.fused import FusedSequential

KINKS = [-1.0, 0.0, -0.0, 1e-38, 3.0, 6.0, 6.5, float("inf"), float("-inf"), float("nan")]
ACTIVATIONS = {"relu": nn.ReLU(), "relu in place": nn.ReLU(True), "relu6": nn.ReLU6(), "relu6 in place": nn.ReLU6(True)}


def network(activation: nn.Module = ACTIVATIONS["relu6 in place"]) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.uniform_(tensor, -1, 3)
    block = nn.Sequential(nn.Conv2d(3, 6, 3), norm, copy.deepcopy(activation))
    return nn.Sequential(block, nn.AvgPool2d(2, 1), nn.Conv2d(6, 4, 2), nn.Flatten(), nn.Linear(36, 3)).eval()


def images() -> torch.Tensor:
    return torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images()).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("method", ["exact", "asi:ranks=5x6x5x5", "quantize:bits=8"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_and_bytes_are_those_of_the_two_layers(activation, method):
    fused = fedact.compress(network(activation), method, layers=2)
    assert isinstance(fused[0], FusedSequential)
    apart = copy.deepcopy(fused)
    apart[0].__class__ = nn.Sequential
    with fedact.measure_memory(fused, images()) as memory:
        actual = gradients(fused)
    with fedact.measure_memory(apart, images()) as memory_apart:
        expected = gradients(apart)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)
    assert (memory.saved_bytes, memory.by_layer) == (memory_apart.saved_bytes, memory_apart.by_layer)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_are_autograds(activation):
    model = fedact.compress(network(activation), "exact", layers=2)
    plain = network(activation)
    for parameter in plain[0][1].parameters():
        parameter.requires_grad_(False)
    expected = gradients(plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_at_the_kinks_it_is_pytorchs_gradient(activation):
    model = fedact.compress(network(activation), "exact", layers=2)
    fused = model[0][1:]
    assert isinstance(fused, FusedSequential)
    norm = fused[0]
    norm.eps = 0.0
    for tensor, value in ((norm.running_mean, 0.0), (norm.running_var, 1.0), (norm.weight, 1.0), (norm.bias, 0.0)):
        nn.init.constant_(tensor, value)
    x = torch.tensor(KINKS).expand(2, 6, 10).reshape(2, 6, 5, 2).clone().requires_grad_()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    y = fused(x)
    plain = F.relu6(x) if isinstance(activation, nn.ReLU6) else F.relu(x)
    torch.testing.assert_close(y, plain, rtol=0, atol=0, equal_nan=True)
    (actual,), (expected,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(plain, x, grad)
    assert torch.equal(actual, expected)


def test_second_derivatives_are_autograds():
    model, plain = fedact.compress(network(), "exact", layers=2), network()

    def second(net: nn.Module) -> torch.Tensor:
        x = images().requires_grad_()
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(second(model), second(plain))


def test_hooks_see_the_norms_output_and_its_gradient():
    model, plain = fedact.compress(network(ACTIVATIONS["relu6"]), "exact", layers=2), network(ACTIVATIONS["relu6"])
    seen = []
    for each in (model, plain):
        each[0][1].register_forward_hook(lambda _, __, y: (y.retain_grad(), seen.append(y))[0])
        gradients(each)
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(seen[0].grad, seen[1].grad)


def test_it_is_restored_copied_pickled_and_sliced():
    model = fedact.compress(network(), "exact", layers=2)
    expected = gradients(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin[0], FusedSequential)
        assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(twin).items())
    x = images()
    torch.testing.assert_close(model[0][:2](x), model[0][1](model[0][0](x)))
    assert type(fedact.restore(model)[0]) is nn.Sequential


@pytest.mark.parametrize("method", ["exact", "exact:derive=2", "quantize:bits=8"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_norm_over_a_convolutions_output_computes_the_same(method, layers):
    fused = fedact.compress(network(), method, layers=layers)
    apart = copy.deepcopy(fused)
    apart[0].__class__ = nn.Sequential
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(fused(images()), apart(images()))
    actual, expected = gradients(fused), gradients(apart)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("before", [True, False])
def test_what_hooks_are_given_is_not_overwritten(enabled, place, before):
    model, seen = fedact.compress(network(), "exact", layers=2), []
    block = model[0]

    def keep(module, args, output=None):
        seen.append((kept := args[0] if before else output, kept.detach().clone()))

    register = block[place].register_forward_pre_hook if before else block[place].register_forward_hook
    register(keep)
    with torch.set_grad_enabled(enabled):
        model(images())
    ((kept, copied),) = seen
    assert (place == 1 and not before) or torch.equal(kept, copied)


def test_a_layer_that_is_called_by_itself_leaves_its_input_alone():
    model = fedact.compress(network(), "exact", layers=1)
    convolved = model[0][0](images())
    before = convolved.clone()
    model[0][1](convolved)
    assert torch.equal(convolved, before)


@pytest.mark.parametrize(("enabled", "layers"), [(False, 1), (True, 1), (True, 2)])
def test_a_convolution_and_its_norm_have_two_large_tensors_alive(enabled, layers):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(True))
    model = fedact.compress(
        nn.Sequential(nn.Conv2d(3, 4, 1), block, nn.AvgPool2d(40), nn.Conv2d(16, 4, 1)), "exact", layers=layers
    )
    x = torch.randn(1, 3, 40, 40)
    with fedact.measure_memory(model, x) as memory, torch.set_grad_enabled(enabled):
        model(x)
    # The block's input, 4 x 40 x 40 x 4 = 25,600 bytes, and one tensor of its output's size, 102,400. Under autograd also
    # the mask, 3,200 bytes, made of 16,384 elements at a time: 5 bytes each.
    mask = 0 if layers == 1 else 5 * 16_384 + 3_200
    assert memory.peak_bytes == 25_600 + 102_400 + mask


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 24), nn.GELU(approximate="tanh"), nn.Dropout(), nn.Linear(24, 6))
    return nn.Sequential(body, nn.Linear(6, 3))


def test_gelu_writes_over_a_linear_layers_output_where_no_gradient_asks_for_it():
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1))
    model, plain = fedact.compress(mlp(), "exact", layers=0), mlp().eval()
    given = x.clone()
    with torch.no_grad(), fedact.measure_memory(model, x) as memory:
        found = model(x)
    assert torch.equal(x, given)
    assert torch.equal(found, plain(x))
    assert memory.peak_bytes == 4 * 5 * 7 * (24 + 6)


@pytest.mark.parametrize("watched", ["0", "1"])
def test_gelu_leaves_what_a_hook_sees_as_it_is(watched):
    x, seen = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), []
    model = fedact.compress(mlp(), "exact", layers=0)
    model[0].get_submodule(watched).register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        model(x)
    plain = mlp().eval()[0]
    first = plain[0](x)
    expected = [x, first] if watched == "0" else [first, plain[1](first)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_gelus_gradients_are_autograds():
    x = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1))
    model, plain = fedact.compress(mlp(), "exact", layers=2), mlp().eval()
    for each in (model, plain):
        each(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, plain.get_parameter(name).grad, rtol=1e-5, atol=1e-5), name
