import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedact.compression import METHODS, make_method, method_name
from fedact.compression.lowrank.factor_gradient import factor_gradient
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.operations import Convolution
from fedact.config.errors import ConfigError
from fedact.laws import LAWS
from fedact.laws.strategies import convolutions
from fedact.nn.surgery import compress
from tests.support.laws import EVERY_SETTING, GENTLEST, OF_SERIES
from tests.support.portions import examples


def law_test(name: str):
    """A property over every setting that the law is about."""
    law = LAWS[name]
    settings = [GENTLEST[name] for name in GENTLEST] if name == "gentlest" else EVERY_SETTING
    settings = [*settings, *OF_SERIES] if name in ("series", "tokens") else settings

    @pytest.mark.parametrize("text", [text for text in settings if not law.not_checked(make_method(text))])
    @given(case=law.cases)
    @examples(law.examples)
    def test(text, case):
        law.check(make_method(text), case)

    return test


for each in LAWS:
    globals()[f"test_law_{each}"] = law_test(each)


@given(case=convolutions(), ranks=st.tuples(*[st.integers(1, 6)] * 4))
@examples(100)
def test_factor_gradient_equals_the_gradient_of_the_rebuilt_activation_in_every_geometry(case, ranks):
    method, operation = HOSVD(ranks=ranks), Convolution.of(case.layer)
    core, factors = method.parts(method.compress(case.x.double()))
    weight, grad = case.layer.weight.detach().double(), case.grad_output.double()
    rebuilt = method.reconstruct(method.compress(case.x.double()))
    expected = operation.weight_gradient(rebuilt, grad, weight)
    actual = factor_gradient(core, factors, grad, weight, operation)
    assert (actual - expected).norm() <= 1e-10 * (1 + rebuilt.norm() * grad.norm())


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
