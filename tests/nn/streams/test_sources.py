"""Blocks in streams whose narrow inputs are made again by the blocks before: the same gradients, fewer bytes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import fedact
from fedact.models import make_model
from fedact.nn.recompute import recompute_of
from fedact.nn.streams.find import find
from fedact.nn.streams.install import in_whole_maps
from fedact.nn.streams.sources import BlockCodec
from tests.support.inverted_residuals import assert_close, batch, gradients, plain_gradients, small


def made_again(model):
    return [name for name, module in model.named_modules() if isinstance(vars(module).get("codec"), BlockCodec)]


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("layers", [4, 8, 9, 12])
@pytest.mark.parametrize("recompute", [1, 3, 6])
def test_every_depth_has_plain_autograds_gradients(layers, recompute, examples):
    torch.manual_seed(layers)
    model, (x, y) = small().double(), batch(examples)
    want = plain_gradients(model, x, y, layers)
    fedact.compress(model, "exact", layers=layers, room=2000, recompute=recompute)
    assert_close(gradients(model, x, y), want)
    loss = F.cross_entropy(model(x), y)
    model.zero_grad()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_close({name: p.grad / 2 for name, p in model.named_parameters() if p.grad is not None}, want)


def test_which_blocks_are_made_again():
    model = small()
    assert [chain.follows for chain in find(model)] == ["", "0.0", "2.conv.0", ""]
    for recompute, names in ((0, []), (2, []), (3, ["2.conv.0"]), (6, ["2.conv.0", "3.conv.0"])):
        fedact.compress(model, "exact", layers=12, room=2000, recompute=recompute)
        assert made_again(model) == names
        assert recompute_of(model) == (recompute if names else 0)
    # Of a frozen block nothing is saved that another one could be made from.
    fedact.compress(model, "exact", layers=6, room=2000, recompute=6)
    assert made_again(model) == []


@pytest.mark.parametrize("change", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_make_again_too(change):
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    model = change(fedact.compress(model, "exact", layers=12, room=2000, recompute=6))
    assert made_again(model) == ["2.conv.0", "3.conv.0"]
    assert_close(gradients(model, x, y), want)


@pytest.mark.parametrize("place", ["1", "2.conv", "2.conv.7"])
def test_an_input_that_a_hook_put_there_is_saved(place):
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    hook = model.get_submodule(place).register_forward_hook(lambda module, args, output: 1.5 * output)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000, recompute=6)
    assert_close(gradients(model, x, y), want)
    hook.remove()


def test_inputs_that_whole_layers_computed_are_saved():
    torch.manual_seed(0)
    model, (x, y) = small().double(), batch(2)
    want = plain_gradients(model, x, y, 12)
    fedact.compress(model, "exact", layers=12, room=2000, recompute=6)
    with in_whole_maps(model):
        assert_close(gradients(model, x, y), want)


def test_weights_that_were_changed_in_between_are_refused():
    model, (x, y) = small().double(), batch(2)
    fedact.compress(model, "exact", layers=12, room=2000, recompute=3)
    loss = F.cross_entropy(model(x), y)
    with torch.no_grad():
        model[1].conv[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="between a forward and its backward pass"):
        loss.backward()


def test_with_loss_the_reconstruction_is_made_again_from():
    torch.manual_seed(0)
    model, (x, y) = small(), batch(4, dtype=torch.float32)
    want = plain_gradients(model, x, y, 12)
    found = gradients(fedact.compress(model, "quantize:bits=8", layers=12, room=2000, recompute=6), x, y)
    assert made_again(model) == ["2.conv.0", "3.conv.0"]
    assert all(F.cosine_similarity(found[name].flatten(), want[name].flatten(), 0) > 0.99 for name in want)


def test_mcunet_peaks_below_six_tenths_of_its_floor():
    torch.manual_seed(0)
    model, x, y = make_model("mcunet", 3), torch.rand(1, 3, 64, 64), torch.tensor([1])
    floor, peaks = fedact.floor(model, x).bytes, {}
    for recompute in (0, 3):
        fedact.compress(model, "exact", layers=42, room=floor // 32, recompute=recompute)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        with fedact.measure_memory(model, (x, y)) as memory:
            F.cross_entropy(model(x), y).backward()
        peaks[recompute] = memory.peak_bytes
    assert peaks[3] < 0.6 * floor < peaks[0]
