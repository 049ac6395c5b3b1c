"""Laws of a layer whose input a method keeps: its output and gradients, against plain autograd's."""

import copy

import torch
from torch import Tensor, nn

from fedact.compression import Method
from fedact.laws.cases import LayerCase, LinearCase
from fedact.laws.demand import demand
from fedact.laws.inputs import relative_error
from fedact.nn.surgery import compress

ROUNDING = 1e-5
"""What sums in another order may change in float32, relatively."""
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Output, and gradients of input, weight and bias."""


def wrapped(case: LayerCase, method: Method) -> nn.Module:
    """Return the case's layer, which keeps its input by the method."""
    model: nn.Module = compress(nn.Sequential(copy.deepcopy(case.layer), *case.others), method, layers=case.layers)
    return model.get_submodule("0")


def of_input(case: LayerCase, method: Method) -> Method:
    """Return the method as the case's layer uses it on its input."""
    return (method if case.layers else method.for_dimensions(2)).for_dimensions(case.x.dim())


def backward(layer: nn.Module, case: LayerCase) -> Gradients:
    """Return a layer's output and its gradients for the case's input and output gradient."""
    x = case.x.clone().requires_grad_()
    y = layer(x)
    y.backward(case.grad_output)
    weight, bias = layer.get_parameter("weight"), layer.bias
    assert x.grad is not None
    assert weight.grad is not None
    return y.detach(), x.grad, weight.grad, bias.grad if isinstance(bias, Tensor) else None


def output_is_plain(method: Method, case: LayerCase) -> None:
    """Check output, input gradient and bias gradient, none of which needs what is kept."""
    y, grad_input, _, grad_bias = backward(wrapped(case, method), case)
    plain_y, plain_input, _, plain_bias = backward(copy.deepcopy(case.layer), case)
    demand(torch.equal(y, plain_y), "the layer's output is not the plain layer's, bit for bit")
    if method.traits.exact_input_gradient:
        same = torch.equal(grad_input, plain_input)
        demand(same, "the input gradient is not the plain layer's, bit for bit, though traits.exact_input_gradient says so")
    if grad_bias is not None and plain_bias is not None:
        demand(torch.allclose(grad_bias, plain_bias, rtol=1e-5, atol=1e-5), "the bias gradient is not the plain layer's")


def weight_gradient_is_of_the_reconstruction(method: Method, case: LayerCase) -> None:
    """Check that the weight's gradient is plain autograd's for the reconstruction, to rounding."""
    _, _, grad_weight, _ = backward(wrapped(case, method), case)
    demand(grad_weight.isfinite().all(), "the weight gradient has numbers that are not finite")
    plain, rebuilt = copy.deepcopy(case.layer).double(), case.rebuilt(of_input(case, method))
    plain(rebuilt.double()).backward(case.grad_output.double())
    expected, scale = plain.get_parameter("weight").grad, case.x.double().norm() * case.grad_output.double().norm()
    assert expected is not None
    off = (grad_weight.double() - expected).norm()
    demand(off <= ROUNDING * scale, f"the weight gradient is {float(off / scale):.3g} of |x| |grad_output| off")


def sequences_obey_too(method: Method, case: LayerCase) -> None:
    """Check output and gradients of a layer on tokens or series."""
    output_is_plain(method, case)
    weight_gradient_is_of_the_reconstruction(method, case)


def linear_layers_keep_their_input_too(method: Method, case: LinearCase) -> None:
    """Check the gradients of a linear layer, relative to themselves."""
    expected, plain = case.rebuilt(of_input(case, method)), copy.deepcopy(case.layer)
    _, _, weight, bias = backward(wrapped(case, method), case)
    plain(expected).backward(case.grad_output)
    for name, found in (("weight", weight), ("bias", bias)):
        of_plain = plain.get_parameter(name).grad
        assert found is not None
        assert of_plain is not None
        off = relative_error(found, of_plain)
        demand(off < ROUNDING, f"the {name} gradient is {off:.3g} off, relative to plain autograd's of the reconstruction")
