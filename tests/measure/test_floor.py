"""The floor against values by hand: the largest input and output of any one layer, one image, 4 bytes an element."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from fedact.config.errors import ConfigError
from fedact.measure.floor import Floor
from fedact.models import make_model

FLOAT = 4


def images(side: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "known"), [(224, 6_021_120), (128, 1_966_080), (64, 491_520)])
def test_mobilenet_v2s_floor_is_its_second_blocks_depthwise_convolution(side, known):
    # 96 channels at half the side in, and at a quarter of it out: stride 2.
    read, written = 96 * (side // 2) ** 2 * FLOAT, 96 * (side // 4) ** 2 * FLOAT
    floor = fedact.floor(make_model("mobilenet_v2", 10), images(side))
    assert floor == Floor(read + written, "features.2.conv.1.0", read, written)
    assert floor.bytes == known


@pytest.mark.parametrize(
    ("name", "width", "side", "known"),
    [
        ("mobilenet_v2", 0.35, 64, 48 * (32**2 + 16**2) * FLOAT),
        ("mcunet", None, 128, (8 + 32) * 64**2 * FLOAT),
        ("mcunet", None, 64, (8 + 32) * 32**2 * FLOAT),
        # The pooling after ResNet's first convolution: 64 channels at half the side in, at a quarter out.
        ("resnet18", None, 64, 64 * (32**2 + 16**2) * FLOAT),
    ],
)
def test_known_networks(name, width, side, known):
    model = make_model(name, 10, width)
    assert fedact.floor(model, images(side)).bytes == known
    # Piecewise linear activations write in place backward as well: training needs no more.
    assert fedact.floor(model, images(side), layers=8).bytes == known


def test_it_is_of_one_image_whatever_the_batch_and_does_not_count_the_image():
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    written = 2 * 6 * 6 * FLOAT
    for example in (images(8), images(8, 5), (images(8, 5), torch.arange(5))):
        assert fedact.floor(model, example) == Floor(written, "0", 0, written)


def test_half_precision_counts_half():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).bfloat16()
    assert fedact.floor(model, images(4).bfloat16()).bytes == 2 * (8 * 16 + 8 * 16)


@pytest.mark.parametrize(("activation", "training"), [(nn.ReLU(), 1), (nn.SiLU(), 2), (nn.Sigmoid(), 2)])
def test_an_activation_works_in_place_but_for_a_smooth_ones_backward_pass(activation, training):
    wide = 64 * 8 * 8 * FLOAT
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)
    )
    pooled = wide + 64 * FLOAT
    assert fedact.floor(model, images(8)).bytes == pooled
    assert fedact.floor(model, images(8), layers=1).bytes == max(pooled, training * wide)
    # No gradient passes the activation where the head alone is trained.
    assert fedact.floor(model, images(8), layers=0).bytes == pooled


class Nested(nn.Module):
    """A residual block within a block; an addition and a function are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.ModuleDict(
            {"block": nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU6(inplace=True), nn.Conv2d(16, 4, 1))}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.relu(x + self.inner["block"](x)).mean((2, 3))


def test_a_nested_residual_network():
    wide, narrow = 16 * 8 * 8 * FLOAT, 4 * 8 * 8 * FLOAT
    assert fedact.floor(Nested(), images(8)) == Floor(wide + narrow, "inner.block.0", narrow, wide)


def test_it_leaves_the_model_as_it_is_and_is_the_same_of_a_compressed_one():
    model = make_model("mobilenet_v2", 10, 0.35)
    before, mode = copy.deepcopy(model.state_dict()), model.training
    random = torch.get_rng_state()
    plain = fedact.floor(model, images(64))
    assert model.training == mode
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    compressed = fedact.compress(model, "hosvd:variance=0.8", layers=4)
    assert fedact.floor(compressed, images(64)) == plain
    with torch.no_grad():
        assert fedact.floor(compressed, images(64), layers=4) == plain


def test_what_cannot_be_run_is_refused_in_one_line():
    model = nn.Sequential(nn.Conv2d(3, 2, 3))
    with pytest.raises(ConfigError, match="cannot be run on the example's first image"):
        fedact.floor(model, torch.rand(1, 5, 8, 8))
    with pytest.raises(ConfigError, match="a batch of images"):
        fedact.floor(model, [])
    with pytest.raises(ConfigError, match="the model has 1 convolutions"):
        fedact.floor(model, images(8), layers=2)


def test_no_whole_step_peaks_below_it():
    model = make_model("mobilenet_v2", 10, 0.35)
    x, y = images(64), torch.tensor([0])
    floor = fedact.floor(model, x, layers=8).bytes
    fedact.compress(model, "exact", layers=8)
    with fedact.measure_memory(model, inputs=(x, y)) as memory:
        F.cross_entropy(model(x), y).backward()
    assert memory.peak_bytes >= floor
