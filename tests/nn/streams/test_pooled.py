"""A dense convolution in streams with the pooling after it: plain autograd's gradients, and no map of all channels."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fedact
from fedact.models import make_model
from fedact.nn.streams.find import find
from tests.support.inverted_residuals import ACTIVATIONS, assert_close, batch, gradients, norm_of, plain_gradients, shaken

POOLINGS = {
    "maxima 3/2": partial(nn.MaxPool2d, 3, 2, 1), "maxima 2": partial(nn.MaxPool2d, 2, ceil_mode=True),
    "maxima dilated": partial(nn.MaxPool2d, 2, 1, 0, 2), "module": partial(nn.AdaptiveAvgPool2d, 1),
    "function": lambda: Means(lambda x: F.adaptive_avg_pool2d(x, (1, 1))), "mean": lambda: Means(lambda x: x.mean((2, 3))),
    "mean kept": lambda: Means(lambda x: torch.mean(x, dim=[-1, -2], keepdim=True)),
}  # fmt: skip
ROOMS = st.sampled_from([1, 3000, 10**9])


class Means(nn.Module):
    """A pooling by a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pooled(nn.Module):
    """A 1 x 1 convolution, a convolution that is pooled, and a head."""

    def __init__(self, kernel, stride, activation, norm, bias, pooling):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 1)
        self.wide = nn.Sequential(
            nn.Conv2d(5, 12, kernel, stride, kernel // 2, bias=bias),
            norm_of(12, norm),
            ACTIVATIONS[activation](),
            nn.Dropout(),
        )
        self.pooling, self.head = POOLINGS[pooling](), nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.pooling(self.wide(self.first(x))).flatten(1))


networks = st.builds(
    partial, st.just(Pooled), st.sampled_from([1, 2, 3, 7]), st.sampled_from([1, 2]), st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(), st.booleans(), st.sampled_from(sorted(POOLINGS)),
)  # fmt: skip


@given(networks, st.integers(0, 2), ROOMS, st.integers(1, 3), st.integers(0, 2**31))
def test_any_pooled_convolution_has_plain_autograds_gradients(build, layers, room, examples, seed):
    torch.manual_seed(seed)
    x, y = batch(examples, pixels=11)
    model = build().double()
    model(x)
    shaken(model)
    want = plain_gradients(model, x, y, layers)
    assert [chain.convolutions for chain in find(model)] == [["wide.0"]]
    assert_close(gradients(fedact.compress(model, "exact", layers=layers, room=room), x, y), want)


def test_the_output_is_the_plain_models():
    torch.manual_seed(0)
    model, (x, _) = Pooled(3, 1, "relu", True, False, "maxima 3/2").double().eval(), batch(2)
    model(x)
    want = shaken(model)(x).detach()
    fedact.compress(model, "exact", layers=1, room=3000)
    torch.testing.assert_close(model(x).detach(), want)


def test_an_input_decoded_some_channels_at_a_time_has_the_gradients_of_the_whole_one():
    torch.manual_seed(0)
    model, (x, y) = Pooled(3, 1, "relu6", True, False, "function"), batch(2, dtype=torch.float32)
    model(x)
    shaken(model)
    want = gradients(fedact.compress(model, "quantize:bits=8", layers=1, room=10**9), x, y)
    assert_close(gradients(fedact.compress(model, "quantize:bits=8", layers=1, room=1), x, y), want, rtol=1e-5)


@pytest.mark.parametrize(("pooling", "observed"), [("maxima 2", "pooling"), ("module", "pooling"), ("mean", "wide")])
def test_a_hook_that_sees_the_map_gets_all_of_it(pooling, observed):
    torch.manual_seed(0)
    model, (x, y) = Pooled(3, 1, "relu", True, False, pooling).double(), batch(2)
    model(x)
    want = plain_gradients(shaken(model), x, y, 2)
    fedact.compress(model, "exact", layers=2, room=3000)
    seen = []
    module = model.get_submodule(observed)
    if observed == "pooling":
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    else:
        module.register_forward_hook(lambda _, args, output: seen.append(output.shape))
    assert_close(gradients(model, x, y), want)
    assert seen == [(2, 12, 12, 12)]


def test_a_resnet_peaks_below_its_floor():
    torch.manual_seed(0)
    model, x, y = make_model("resnet18", 3), torch.rand(1, 3, 64, 64), torch.tensor([1])
    floor = fedact.floor(model, x).bytes
    peaks = {}
    for layers, recompute in ((4, 0), (20, 1)):
        fedact.compress(model, "exact", layers=layers, room="20KB", recompute=recompute)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with fedact.measure_memory(model, (x, y)) as memory:
            F.cross_entropy(model(x), y).backward()
        peaks[layers] = memory.peak_bytes
    assert peaks[4] < 0.7 * floor
    assert peaks[20] < 1.3 * floor
