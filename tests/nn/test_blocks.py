"""Blocks that run their traced code: the plain network's values and gradients, hooks and settings heard, less alive."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import fedact
from fedact.compression import make_method
from fedact.models import make_model
from fedact.nn.blocks import Block
from fedact.nn.install import install

X, Y = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3])


def network(block=BasicBlock) -> ResNet:
    torch.manual_seed(0)
    model = ResNet(block, [1, 2, 1, 1], num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.uniform_(tensor, -0.5, 1.5)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("method", ["exact", "checkpoint", "exact:derive=2"])
@pytest.mark.parametrize("layers", [3, 9])
def test_outputs_and_gradients_are_autograds(block, method, layers):
    plain, model = network(block), fedact.compress(network(block), method, layers=layers)
    assert isinstance(model, Block)
    assert isinstance(model.layer1[0], Block)
    expected, actual = gradients(plain), gradients(model)
    assert actual
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(X), plain(X))


def test_a_restored_a_copied_and_a_pickled_block_are_what_they_were():
    model = fedact.compress(network(), "exact", layers=3)
    expected = model(X)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), expected)
    assert type(fedact.restore(model)) is ResNet
    assert type(model.layer1[0]) is BasicBlock


def test_the_code_follows_a_blocks_settings():
    model = fedact.compress(network(), "exact", layers=3)
    block = model.layer1[0]
    x = torch.randn(1, 64, 6, 6)
    before = block(x)
    block.downsample = nn.Conv2d(64, 64, 1)
    assert not torch.allclose(block(x), before)
    block.downsample = None
    assert torch.equal(block(x), before)


def test_a_block_of_unknown_code_runs_its_own():
    class Keeps(BasicBlock):
        def forward(self, x):
            self.seen = self.conv1(x)
            return self.bn1(self.seen)

    model = nn.Sequential(Keeps(4, 4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2)).eval()
    nn.init.constant_(model[0].bn1.bias, 2.0)
    fedact.compress(model, "exact", layers=1)
    x = torch.randn(1, 4, 4, 4)
    model(x)
    assert not isinstance(model[0], Block)
    assert torch.equal(model[0].seen, model[0].conv1(x))


@pytest.mark.parametrize("name", ["bn1", "conv1", "layer1.0.bn2", "layer1.0.conv2"])
def test_what_a_hook_is_given_is_not_overwritten(name):
    model, seen = fedact.compress(network(), "exact", layers=3), []
    model.get_submodule(name).register_forward_hook(lambda _, args, output: seen.append((output, output.clone())))
    model(X)
    ((output, copied),) = seen
    # The ReLUs write over a norm's output, as in the plain network.
    assert "bn1" in name or torch.equal(output, copied)


def test_a_networks_first_convolution_has_nothing_of_its_size_beside_it():
    model, x = fedact.compress(network(), "exact", layers=3), torch.randn(1, 3, 64, 64)
    with torch.no_grad(), fedact.measure_memory(model, x) as memory:
        model(x)
    # Its output, 64 x 32 x 32 x 4 = 262,144 bytes, the pooled 65,536, and the maxima of ten of its 64 channels, so many as
    # take 131,072 bytes of 48 a maximum: 10 x 16 x 16 x (4 + 8) = 30,720.
    assert memory.peak_bytes == 262_144 + 65_536 + 30_720


def test_a_sequential_keeps_its_input_only_where_it_is_observed():
    torch.manual_seed(0)
    model, x = fedact.compress(make_model("mcunet", 4), "exact", layers=1), torch.randn(1, 3, 32, 32)
    expected, peaks = model(x), []
    for observed in (False, True):
        handle = model.blocks.register_forward_hook(lambda *_: None) if observed else None
        with torch.no_grad(), fedact.measure_memory(model, x) as memory:
            assert torch.equal(model(x), expected)
        peaks.append(memory.peak_bytes)
        if handle is not None:
            handle.remove()
    # In the second block: its input, 8 x 16 x 16 x 4 = 8,192 bytes, 32 channels of it, 32,768, and of half a side, 8,192.
    # A hook gets the input of all blocks, the first convolution's 16 channels, 16,384 bytes.
    assert peaks == [8_192 + 32_768 + 8_192, 8_192 + 32_768 + 8_192 + 16_384]


@pytest.mark.parametrize("chunk", [0, 1])
def test_a_block_runs_its_prefix_in_chunks(chunk):
    methods = {"layer4.0.conv2": make_method("exact"), "fc": make_method("exact")}
    model = install(network(), methods, prefix_chunk=chunk)
    expected = gradients(network())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
