"""Every method keeps a streamed block's narrow input: gradients are those of its reconstruction, bytes are counted."""

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.compression import METHODS, make_method
from fedact.laws import LAWS
from fedact.laws.cases import TensorCase
from tests.support.inverted_residuals import assert_close, batch, gradients, plain_gradients, small
from tests.support.laws import GENTLEST, ROUNDING

KEEPING = [name for name, method in METHODS.items() if method.traits.saves_less]


@pytest.mark.parametrize("name", KEEPING)
def test_the_gentlest_setting_has_plain_autograds_gradients(name):
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2, pixels=24)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, GENTLEST[name], layers=12, room=2000)
    for _ in range(2):
        assert_close(gradients(model, x, y), want, rtol=max(1e-3, 20 * ROUNDING.get(name, 0)))


@pytest.mark.parametrize("name", ["hosvd", "svd", "gradient_filter", "asi:ranks=2x3x3x3", "transform:bits=2"])
def test_gradients_are_those_of_the_blocks_reconstructed_input(name):
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2, pixels=24)
    fedact.compress(model, name, layers=3, room=2000)
    found = gradients(model, x, y)
    method = model[4].conv[0].codec.method
    fedact.restore(model).eval()
    h = model[:4](x).detach()
    # The loss's gradient is that of the input itself.
    output = model[4](h).detach().requires_grad_()
    F.cross_entropy(model[5:](output), y).backward()
    kept = method.reconstruct(method.compress(h, method.start(9)))
    model.zero_grad()
    model[4].conv(kept).backward(output.grad)
    for place in (0, 3, 6):
        assert_close({"weight": found[f"4.conv.{place}.weight"]}, {"weight": model[4].conv[place].weight.grad}, 1e-6)


@pytest.mark.parametrize("name", ["exact", "hosvd", "quantize", "transform", "asi"])
def test_the_bytes_of_a_block_are_its_narrow_inputs(name):
    torch.manual_seed(0)
    model, (x, y) = small(), batch(2, pixels=24, dtype=torch.float32)
    fedact.compress(model, name, layers=12, room=2000)
    gradients(model, x, y)
    with fedact.measure_memory(model, (x, y)) as memory:
        gradients(model, x, y)
    assert {layer.rpartition(".")[0] for layer in memory.by_layer} <= {"", "0", "2.conv", "3.conv", "4.conv"}
    if name == "exact":
        narrow = 4 * 2 * (5 * 12 * 12 + 2 * 6 * 6 * 6)
        blocks = sum(size for layer, size in memory.by_layer.items() if ".conv" in layer)
        assert blocks == narrow
    assert memory.paper_bytes > 0


@pytest.mark.parametrize("shape", [(1, 8, 16, 16), (2, 6, 5, 5), (1, 300, 3, 3)])
@pytest.mark.parametrize("name", [*KEEPING, "quantize:bits=8", "quantize:bits=4,group=64", "quantize:group=5"])
def test_some_channels_are_those_of_the_whole_reconstruction(name, shape):
    LAWS["channels"].check(make_method(name), TensorCase(shape))


@pytest.mark.parametrize("room", [300, 10**9])
def test_decoding_some_channels_at_a_time_changes_nothing(room):
    torch.manual_seed(0)
    model, (x, y) = small(), batch(1, pixels=24, dtype=torch.float32)
    fedact.compress(model, "quantize:bits=8", layers=12, room=10**9)
    want = gradients(model, x, y)
    found = gradients(fedact.compress(model, "quantize:bits=8", layers=12, room=room), x, y)
    assert_close(found, want, rtol=1e-5)
