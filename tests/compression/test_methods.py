import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedact.compression import METHODS, make_method, method_name
from fedact.compression.lowrank.factor_gradient import factor_gradient
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.operations import Convolution
from fedact.config.errors import ConfigError
from fedact.measure.memory import stored_bytes
from fedact.nn.surgery import compress
from tests.support.laws import EVERY_SETTING, GENTLEST, LOSSY, ROUNDING, Case, cases, relative_error
from tests.support.portions import examples

every_setting = pytest.mark.parametrize("text", EVERY_SETTING)


def wrapped(layer: nn.Conv2d, text: str) -> nn.Conv2d:
    return compress(nn.Sequential(copy.deepcopy(layer)), text, layers=1)[0]


def backward(layer: nn.Conv2d, case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x = case.x.clone().requires_grad_()
    y = layer(x)
    y.backward(case.grad_output)
    return y.detach(), x.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad


@every_setting
@given(case=cases())
@examples(30)
def test_forward_and_input_gradient_are_those_of_the_plain_layer_bit_for_bit(text, case):
    y, grad_input, _, grad_bias = backward(wrapped(case.layer, text), case)
    plain_y, plain_input, _, plain_bias = backward(copy.deepcopy(case.layer), case)
    assert torch.equal(y, plain_y)
    if make_method(text).traits.exact_input_gradient:
        assert torch.equal(grad_input, plain_input)
    assert grad_bias is None or torch.allclose(grad_bias, plain_bias, rtol=1e-5, atol=1e-5)


@every_setting
@given(case=cases())
@examples(30)
def test_weight_gradient_is_the_plain_one_of_the_reconstruction(text, case):
    method = make_method(text)
    _, _, grad_weight, _ = backward(wrapped(case.layer, text), case)
    plain = copy.deepcopy(case.layer).double()
    rebuilt = method.reconstruct(method.compress(case.x)).double()
    plain(rebuilt).backward(case.grad_output.double())
    scale = case.x.double().norm() * case.grad_output.double().norm()
    assert (grad_weight.double() - plain.weight.grad).norm() <= 1e-5 * scale


@given(case=cases(), ranks=st.tuples(*[st.integers(1, 6)] * 4))
@examples(100)
def test_factor_gradient_equals_the_gradient_of_the_rebuilt_activation_in_every_geometry(case, ranks):
    method, operation = HOSVD(ranks=ranks), Convolution.of(case.layer)
    core, factors = method.parts(method.compress(case.x.double()))
    weight, grad = case.layer.weight.detach().double(), case.grad_output.double()
    rebuilt = method.reconstruct(method.compress(case.x.double()))
    expected = operation.weight_gradient(rebuilt, grad, weight)
    actual = factor_gradient(core, factors, grad, weight, operation)
    assert (actual - expected).norm() <= 1e-10 * (1 + rebuilt.norm() * grad.norm())


@every_setting
@given(case=cases())
@examples(25)
def test_predicted_bytes_are_stored_bytes_and_no_view_pins_more_than_it_shows(text, case):
    method = make_method(text)
    tensors, _, state = method.compress(case.x)
    assert method.predicted_bytes(case.x) == stored_bytes(tensors)
    assert method.predicted_state_bytes(case.x) == stored_bytes(state.tensors)
    assert stored_bytes([*tensors, *state.tensors]) == sum(tensor.nbytes for tensor in [*tensors, *state.tensors])
    assert stored_bytes(tensors) <= method.predicted_bytes(case.x.shape)
    assert stored_bytes(state.tensors) <= method.predicted_state_bytes(case.x.shape)


@every_setting
def test_a_view_of_a_large_tensor_does_not_pin_it(text):
    large = torch.randn(64, 4, 6, 6)
    tensors = make_method(text).compress(large[3:5]).tensors
    assert stored_bytes(tensors) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("name", GENTLEST)
@given(case=cases())
@examples(25)
def test_the_gentlest_setting_loses_nothing(name, case):
    method = make_method(GENTLEST[name])
    rebuilt = method.reconstruct(method.compress(case.x))
    assert (rebuilt - case.x).norm() <= ROUNDING.get(name, 1e-5) * case.x.norm()


@pytest.mark.parametrize("text", LOSSY)
def test_lossy_settings_hold_fewer_bytes_than_exact_on_real_shapes(text):
    x = torch.randn(8, 32, 7, 7, generator=torch.Generator().manual_seed(0)).relu().cumsum(2)
    assert stored_bytes(make_method(text).compress(x).tensors) < x.nbytes


@every_setting
def test_levels_get_more_lossy_and_never_larger(text):
    x = torch.randn(8, 16, 5, 5, generator=torch.Generator().manual_seed(0)).relu()
    levels = make_method(text).levels(x)
    sizes = [method.ceiling.predicted_bytes(x) for method in levels.values()]
    assert list(levels) == sorted(levels, reverse=True)
    assert sizes == sorted(sizes, reverse=True)


@every_setting
def test_same_input_same_bits_and_the_global_generator_is_never_touched(text):
    x = torch.randn(4, 6, 5, 5)
    before = torch.random.get_rng_state()
    first, second = (make_method(text).compress(x).tensors for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


@every_setting
def test_a_nan_is_never_turned_into_numbers(text):
    x = torch.randn(4, 6, 5, 5)
    x[1, 2, 3, 4] = torch.nan
    method = make_method(text)
    try:
        rebuilt = method.reconstruct(method.compress(x))
    except FloatingPointError:
        return
    assert rebuilt.isnan().any()


@every_setting
@pytest.mark.parametrize("shape", [(6, 10), (3, 5, 8)], ids=str)
def test_linear_layers_keep_their_input_through_the_method_too(text, shape):
    x, layer = torch.randn(shape), nn.Linear(shape[-1], 4)
    method = make_method(text).for_dimensions(2).for_dimensions(len(shape))
    expected = method.reconstruct(method.compress(x))
    grad = torch.randn(*shape[:-1], 4)
    model = compress(nn.Sequential(copy.deepcopy(layer)), text, layers=0)
    model(x).backward(grad)
    layer(expected).backward(grad)
    assert relative_error(model[0].weight.grad, layer.weight.grad) < 1e-5
    assert relative_error(model[0].bias.grad, layer.bias.grad) < 1e-5


@every_setting
def test_half_precision_doubles_and_channels_last_go_through(text):
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)).relu()
    reference = make_method(text).reconstruct(make_method(text).compress(x))
    # Where half precision rounds a value over an edge, its code is off by no more than codes are off anyway.
    half = max(0.15, relative_error(reference, x))
    for variant, tolerance in ((x.bfloat16(), half), (x.double(), 1e-4), (x.to(memory_format=torch.channels_last), 1e-4)):
        rebuilt = make_method(text).reconstruct(make_method(text).compress(variant))
        assert rebuilt.dtype == variant.dtype
        assert relative_error(rebuilt.float(), reference) < tolerance


@every_setting
def test_a_name_says_everything_and_reads_back(text):
    assert make_method(method_name(make_method(text))) == make_method(text)


def test_defaults_are_left_out_of_the_canonical_name():
    assert [method_name(entry()) for entry in METHODS.values()] == list(METHODS)
    assert method_name(METHODS["hosvd"](variance=0.8)) == "hosvd:variance=0.8"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hosvdd", "did you mean 'hosvd'"),
        ("hosvd:varianc=0.8", "did you mean 'variance'"),
        ("hosvd:variance=2", "at most 1"),
        ("hosvd:variance=0", "above 0"),
        ("hosvd:variance=abc", "cannot be 'abc'"),
        ("hosvd:variance=0.8,ranks=1x1x1x1", "not both"),
        ("hosvd:ranks=0x1x1x1", "whole numbers from 1"),
        ("hosvd:ranks=1x2x3x4x5", "4 whole numbers"),
        ("hosvd:variance", "key=value"),
        ("vanilla:bits=8", "has no settings"),
    ],
)
def test_a_wrong_method_is_refused_in_one_line(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        make_method(text)
    assert "\n" not in str(caught.value)


def test_given_caps_are_kept_at_every_level():
    x = torch.randn(4, 8, 6, 6)
    for text in ("hosvd:max_ranks=2x2x2x2", "hosvd:variance=0.9,max_ranks=2x2x2x2"):
        for level in make_method(text).levels(x).values():
            assert max(level.compress(x).tensors[0].shape) <= 2


def test_a_convolutions_ranks_leave_the_heads_input_exact():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    compress(model, "hosvd:ranks=1x2x2x2", layers=1)
    assert [method_name(model[place].method) for place in (0, 2)] == ["hosvd:ranks=1x2x2x2", "exact"]


def test_ranks_for_another_number_of_dimensions_are_refused():
    with pytest.raises(ConfigError, match="2 ranks are given for a tensor of 4"):
        HOSVD(ranks=(1, 1)).compress(torch.randn(2, 3, 4, 4))
