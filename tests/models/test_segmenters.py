"""The segmentation networks: what they compute, which layers are counted, what a step of them holds, where they are cut."""

import warnings
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

import fedact
from fedact.models import SEGMENTERS, make_segmenter
from fedact.nn.layers import CodecLayer, Masked
from fedact.nn.layers.base import ChannelNorm
from fedact.nn.layers.pooling import PlacedMaxPool2d
from fedact.nn.prefix.chunks import examples_are_independent
from fedact.nn.prefix.split import split
from fedact.nn.surgery import convolutions, head, trained_layers
from tests.support.laws import GENTLEST, relative_error
from tests.support.pixelwise import CLASSES, GATED, HEIGHT, WIDTH, batch, built, loss_of, step

smp = pytest.importorskip("segmentation_models_pytorch")

LAYERS = {
    "pspnet_resnet18": 25,
    "pspnet_mobilenet_v2": 57,
    "deeplabv3_resnet18": 27,
    "deeplabv3_mobilenet_v2": 59,
    "upernet_resnet18": 32,
    "upernet_mobilenet_v2": 64,
    "fcn_resnet50": 54,
    "fcn_resnet101": 105,
    "deeplabv3_resnet50": 60,
    "deeplabv3_resnet101": 111,
    "deeplabv3_mobilenet_v3_large": 69,
    "lraspp_mobilenet_v3_large": 64,
}
"""Counted by hand: ResNet18 has 20 convolutions, MobileNetV2 52; PSPNet's decoder 5, DeepLabV3's 7, UPerNet's 12."""
STRIDES = dict.fromkeys(LAYERS, 8) | dict.fromkeys(["upernet_resnet18", "upernet_mobilenet_v2"], 4)
STRIDES["deeplabv3_mobilenet_v3_large"] = 16
RESNET18 = ["0.conv1", "0.conv2", "0.downsample.0", "1.conv1", "1.conv2"]
MOBILENET_V2 = ["16.conv.2", "17.conv.0.0", "17.conv.1.0", "17.conv.2", "18.0"]
LAST = {
    "pspnet": [*(f"decoder.psp.blocks.{block}.pool.1.0" for block in range(4)), "decoder.conv.0"],
    "deeplabv3": [
        *("decoder.aspp.convs.0.0", "decoder.aspp.convs.1.0", "decoder.aspp.convs.2.0", "decoder.aspp.convs.3.0"),
        *("decoder.aspp.convs.4.1", "decoder.aspp.project.0", "decoder.conv"),
    ],
    "upernet": [
        *("decoder.psp.blocks.2.1.0", "decoder.psp.blocks.3.1.0", "decoder.psp.out_conv.0"),
        *(f"decoder.fpn_lateral_blocks.{block}.conv_norm_relu.0" for block in range(3)),
        *(f"decoder.fpn_conv_blocks.{block}.0" for block in range(3)),
        "decoder.fusion_block.0",
    ],
}
"""The last convolutions of the package's decoders, ten of them or all."""

SMP = [name for name in LAYERS if name.endswith(("resnet18", "v2"))]
SMALL = [*SMP, *GATED]
EVERY = [*SMALL, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in LAYERS if name not in SMALL)]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="not compressed")
        yield


# What they are -------------------------------------------------------------------------------------------------------------


def test_the_tests_know_every_network():
    assert list(LAYERS) == list(SEGMENTERS)


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_scores_have_a_row_for_every_stride_of_pixels(name):
    model, stride = built(name), STRIDES[name]
    assert model(batch()[0]).shape == (2, CLASSES, HEIGHT // stride, WIDTH // stride)
    assert model(batch(90, 120)[0]).shape == (2, CLASSES, ceil(90 / stride), ceil(120 / stride))


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_every_layer_that_is_counted_runs(name):
    model, ran = built(name), set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: ran.add(module))
    model(batch()[0])
    assert all(module in ran for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
    assert len(convolutions(model)) == LAYERS[name]


@pytest.mark.parametrize("name", SMP)
def test_layers_are_counted_from_the_decoders_end(name):
    model, decoder = built(name), name.partition("_")[0]
    encoder = [f"encoder.layer4.{block}" for block in RESNET18] if "resnet" in name else []
    encoder = encoder or [f"encoder.features.{block}" for block in MOBILENET_V2]
    for layers in (5, 10):
        expected = [*[*encoder, *LAST[decoder]][-layers:], "segmentation_head.0"]
        assert trained_layers(model, layers) == expected
    assert trained_layers(model, 0) == ["segmentation_head.0"]


@pytest.mark.parametrize("name", EVERY)
def test_the_head_alone_depends_on_the_classes(name):
    ours, theirs = built(name).state_dict(), built(name, CLASSES + 1).state_dict()
    other = {key.rpartition(".")[0] for key in ours if ours[key].shape != theirs[key].shape}
    assert ours.keys() == theirs.keys()
    assert other == set(head(built(name)))


def theirs(name: str) -> nn.Module:
    """The package's own network, whose scores are not scaled up."""
    decoder, _, encoder = name.partition("_")
    if decoder == "pspnet":
        model = smp.PSPNet(encoder, encoder_weights=None, encoder_depth=5, classes=CLASSES, upsampling=1)
        model.encoder.make_dilated(8)
        return model.eval()
    kind = smp.DeepLabV3 if decoder == "deeplabv3" else smp.UPerNet
    return kind(encoder, encoder_weights=None, classes=CLASSES, upsampling=1).eval()


@pytest.mark.parametrize("name", SMP)
@torch.no_grad()
def test_the_packages_own_network_gives_the_same_scores(name):
    model, other, (x, _) = built(name), theirs(name), batch()
    other.load_state_dict(model.state_dict())
    for layer in convolutions(model):
        # Which dilation is right another test says.
        ours, package = model.get_submodule(layer), other.get_submodule(layer)
        package.dilation, package.padding = ours.dilation, ours.padding
    torch.testing.assert_close(model(x), other(x))


@pytest.mark.parametrize("name", [*GATED, pytest.param("fcn_resnet50", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_torchvisions_own_network_scales_the_same_scores_up(name):
    other = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    model, (x, y) = built(name), batch()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(
        F.interpolate(model(x), size=y.shape[1:], mode="bilinear", align_corners=False), other(x)["out"]
    )


# Training them -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [5, 10])
@pytest.mark.parametrize("name", EVERY)
def test_an_exact_step_has_autograds_gradients(name, layers):
    model, (x, y) = built(name), batch()
    loss_of(model(x), y).backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    memory = step(fedact.compress(model, "exact", layers=layers), x, y)
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key.rpartition(".")[0] for key in trained} == set(trained_layers(model, layers))
    for key, gradient in trained.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-3, atol=1e-6)
    assert memory.hidden_bytes == 0


def most_held(module: nn.Module, name: str, given: int, made: int, loss: int) -> int:
    """How many bytes a module may hold: its input or output as it is, a bit or half a byte an element; the loss its own."""
    if name == "":
        return loss
    if isinstance(module, CodecLayer):
        return given
    if isinstance(module, Masked):
        return made if module.output_is_saved else ceil(made / 4 / 8)
    return ceil(made / 4 / 2) if isinstance(module, PlacedMaxPool2d) else 0


@pytest.mark.parametrize("layers", [5, pytest.param(10, marks=pytest.mark.exhaustive), "all"])
@pytest.mark.parametrize("name", [name for name in EVERY if name not in GATED])
def test_a_step_holds_layers_inputs_masks_and_nothing_else(name, layers):
    model, (x, y) = built(name), batch()
    fedact.compress(model, "exact", layers=LAYERS[name] if layers == "all" else layers)
    sizes: dict[str, tuple[int, int]] = {}

    def note(module: nn.Module, args: tuple[object, ...], output: object, key: str) -> None:
        # A ResNet's activations run twice or three times in a block.
        given, made = (each.nbytes if isinstance(each, Tensor) else 0 for each in (args[0], output))
        before = sizes.get(key, (0, 0))
        sizes[key] = before[0] + given, before[1] + made

    handles = [
        module.register_forward_hook(lambda *call, key=key: note(*call, key)) for key, module in model.named_modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    memory = step(model, x, y)
    loss = 2 * CLASSES * HEIGHT * WIDTH * 4 + 4
    for key, held in memory.by_layer.items():
        assert held <= most_held(model.get_submodule(key), key, *sizes[key], loss), key
    assert memory.hidden_bytes == 0


def test_a_steps_bytes_are_those_counted_by_hand():
    """PSPNet's branches on ResNet18: 512 channels of 8 x 12, and of 1, 4, 9 and 36 places; two examples."""
    model, (x, y) = built("pspnet_resnet18"), batch()
    head_input, bottleneck_input, pooled = 512 * 96 * 4, 1024 * 96 * 4, 512 * (1 + 4 + 9 + 36) * 4
    masks, log_softmax = 128 * (1 + 4 + 9 + 36) // 8, CLASSES * HEIGHT * WIDTH * 4
    expected = 2 * (head_input + bottleneck_input + pooled + masks + log_softmax) + 4
    assert step(fedact.compress(model, "exact", layers=5), x, y).saved_bytes == expected


@pytest.mark.parametrize("layers", [3, 5, 10])
@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_a_network_is_cut_before_its_first_trained_layer(name, layers):
    model, (x, _) = fedact.compress(built(name), "exact", layers=layers), batch()
    parts = split(model)
    assert all(isinstance(value, Tensor) and len(value) == len(x) for value in parts.prefix(x))
    assert torch.equal(parts.suffix(*parts.prefix(x)), model(x))
    assert examples_are_independent(parts, x)


BRANCHED = [*GENTLEST.values(), "hosvd:variance=0.8", "gradient_filter:patch=4", "transform"]
# The iteration of all of 512 channels takes most of a minute.
BRANCHED[BRANCHED.index(GENTLEST["tucker"])] = pytest.param(GENTLEST["tucker"], marks=pytest.mark.exhaustive)


@pytest.mark.parametrize("method", BRANCHED)
@pytest.mark.parametrize("name", ["pspnet_resnet18", pytest.param("deeplabv3_resnet18", marks=pytest.mark.exhaustive)])
def test_every_method_trains_the_branches_of_a_pyramid(name, method):
    model, (x, y) = built(name), batch(examples=4)
    assert step(fedact.compress(model, method, layers=5), x, y).hidden_bytes == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_a_plan_keeps_its_budget():
    model, (x, y) = built("pspnet_resnet18"), batch()
    plan = fedact.make_plan(model, "1MB", (x, y), method="hosvd:variance=0.8", layers=5, scope="saved", loss=loss_of)
    part = x[: plan.micro_batch].clone(), y[: plan.micro_batch].clone()
    memory = step(fedact.apply(model, plan), *part)
    assert plan.layers == 5
    assert memory.hidden_bytes == 0
    assert memory.saved_bytes <= plan.saved_bytes <= 1_000_000


def test_a_channel_norm_kept_as_it_is_has_autograds_gradient_and_is_never_trained():
    model, (x, y) = built("upernet_resnet18"), batch()
    loss_of(model(x), y).backward()
    expected = model.encoder.conv1.weight.grad.clone()
    model.zero_grad()
    step(fedact.compress(model, "exact", layers=LAYERS["upernet_resnet18"]), x, y)
    assert relative_error(model.encoder.conv1.weight.grad, expected) < 1e-5
    assert all(parameter.grad is None for parameter in model.decoder.feature_norms.parameters())


@pytest.mark.parametrize("affine", [True, False])
def test_a_channel_norm_passes_gradients_under_autocast(affine):
    norm, x, found = ChannelNorm(4, elementwise_affine=affine), batch()[0], []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 4, 1))
    for method in ("vanilla", "exact"):
        fedact.compress(model, method, layers=2).zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().mean().backward()
        found.append(model[0].weight.grad)
    assert relative_error(*found) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("decoder", ["pspnet", "deeplabv3"])
def test_a_dilated_encoder_sees_what_the_one_with_strides_sees_and_all_between(decoder, encoder):
    dilated, strided = (make_segmenter(f"{name}_{encoder}", 3).encoder.eval() for name in (decoder, "upernet"))
    strided.load_state_dict(dilated.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        fine, coarse = dilated(x)[-1], strided(x)[-1]
    assert fine.shape[2:] == (8, 12)
    assert coarse.shape[2:] == (2, 3)
    torch.testing.assert_close(fine[..., ::4, ::4], coarse)
