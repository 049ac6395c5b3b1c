"""PSPNet's decoder in parts: plain autograd's gradients and outputs, without its concatenation."""

import pytest
import torch

import fedact
from fedact.models import make_segmenter
from fedact.models.micro_batch import add_gradient
from fedact.nn.prefix.split import split
from fedact.nn.streams.pyramid import Pyramid
from tests.support.inverted_residuals import assert_close, shaken

pytest.importorskip("segmentation_models_pytorch")


def setting(encoder="mobilenet_v2", examples=1, pixels=64):
    torch.manual_seed(0)
    model = shaken(make_segmenter(f"pspnet_{encoder}", 5).double()).eval()
    x, y = (
        torch.rand(examples, 3, pixels, pixels, dtype=torch.float64) * 2 - 1,
        torch.randint(0, 5, (examples, pixels, pixels)),
    )
    return model, x, y


def gradients(model, x, y):
    model.zero_grad()
    add_gradient(model, x, y, len(y))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("encoder", "layers", "recompute", "examples", "channels_last"),
    [
        ("mobilenet_v2", 4, 0, 2, False), ("mobilenet_v2", 12, 0, 1, True), ("mobilenet_v2", 12, 6, 2, True),
        ("mobilenet_v2", 6, 3, 1, False), ("mobilenet_v2", 57, 6, 1, False),
        ("resnet18", 8, 1, 1, False), ("resnet18", 5, 0, 2, True),
    ],
)  # fmt: skip
def test_its_gradients_are_plain_autograds(encoder, layers, recompute, examples, channels_last):
    model, x, y = setting(encoder, examples)
    want = gradients(fedact.compress(model, "vanilla", layers=layers), x, y)
    scores = fedact.restore(model)(x).detach()
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    model.zero_grad()
    fedact.compress(model, "exact", layers=layers, room=20_000, recompute=recompute)
    assert isinstance(model.decoder, Pyramid)
    assert_close(gradients(model, x, y), want)
    torch.testing.assert_close(model(x).detach(), scores)
    with torch.no_grad():
        torch.testing.assert_close(model(x), scores)
    fedact.restore(model)
    assert not isinstance(model.decoder, Pyramid)
    assert "input_codec" not in vars(model.decoder)


def test_a_lossy_method_keeps_the_whole_input_and_a_hook_sees_the_concatenation():
    model, x, y = setting()
    fedact.compress(model, "quantize:bits=8", layers=4, room=20_000)
    assert not isinstance(model.decoder, Pyramid)
    want = gradients(fedact.compress(model, "vanilla", layers=4), x, y)
    fedact.compress(model, "exact", layers=4, room=20_000)
    seen = []
    model.decoder.psp.register_forward_hook(lambda _, args, output: seen.append(output.shape[1]))
    assert_close(gradients(model, x, y), want)
    assert seen == [2560]


def test_what_runs_in_parts_is_not_cut_within():
    model, *_ = setting()
    fedact.compress(model, "exact", layers=4, room=20_000)
    assert split(model) is None
    fedact.compress(model, "exact", layers=0, room=20_000)
    assert split(model) is not None


@pytest.mark.parametrize(("layers", "recompute", "share"), [(4, 0, 1.0), (57, 6, 1.25)])
def test_its_peak_is_near_the_floor(layers, recompute, share):
    model, x, y = setting(pixels=160)
    model, x = model.float(), x.float()
    floor = fedact.floor(model, x).bytes
    fedact.compress(model, "exact", layers=layers, room=floor // 32, recompute=recompute)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with fedact.measure_memory(model, (x, y)) as memory:
        add_gradient(model, x, y, 1)
    assert memory.peak_bytes < share * floor
