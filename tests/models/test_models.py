"""The models: their layers in the paper's order, MCUNet against its published numbers, torchvision's by name."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fedact.config.errors import ConfigError
from fedact.models import MODELS, RESOLUTIONS, make_model, other_classifiers
from fedact.models.weights import from_file, from_torchvision, load_into
from fedact.nn.surgery import body_layers, convolutions, head, trained_layers
from fedact.simulate import main
from tests.support.refusal import refused

VIT = "self_attention", "self_attention.out_proj", "mlp.0", "mlp.3"
LAST = {
    "mobilenet_v2": ["features.17.conv.0.0", "features.17.conv.1.0", "features.17.conv.2", "features.18.0"],
    "resnet18": ["layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv1", "layer4.1.conv2"],
    "resnet34": ["layer4.1.conv1", "layer4.1.conv2", "layer4.2.conv1", "layer4.2.conv2"],
    "mcunet": ["blocks.12.pointwise2.0", "blocks.13.pointwise1.0", "blocks.13.depthwise.0", "blocks.13.pointwise2.0"],
    "vit_tiny": [
        f"encoder.layers.encoder_layer_11.{name}" for name in ("self_attention", "self_attention.out_proj", "mlp.0", "mlp.3")
    ],
}
COUNTS = {"mobilenet_v2": 52, "resnet18": 20, "resnet34": 36, "mcunet": 42, "vit_tiny": 49}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""Its classes among ImageNet's 1,000, in the order of their folders."""


@pytest.mark.parametrize("name", MODELS)
def test_layers_count_from_the_end_in_definition_order(name):
    model = make_model(name, 10)
    assert len(body_layers(model)) == COUNTS[name]
    assert trained_layers(model, 4)[:4] == LAST[name]
    assert trained_layers(model, 4)[4:] == head(model)


def test_mcunet_has_160_features():
    assert make_model("mcunet", 7).classifier.weight.shape == (7, 160)


def folded(tensors: dict[str, Tensor], layers: dict, x: Tensor) -> Tensor:
    """MCUNet with batch norm folded away, straight from its published description."""

    def convolved(x: Tensor, name: str, layer: dict, activated: bool = True) -> Tensor:
        kernel, stride, groups = (layer[key] for key in ("kernel_size", "stride", "groups"))
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        y = F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
        return y.clamp(0, 6) if activated else y

    x = convolved(x, "first_conv", layers["first_conv"])
    for number, block in enumerate(layers["blocks"]):
        y = x
        for kind in ("pointwise1", "depthwise", "pointwise2"):
            if block[kind]:
                y = convolved(y, f"blocks.{number}.{kind}", block[kind], kind != "pointwise2")
        x = x + y if block["residual"] else y
    return convolved(x.mean((2, 3), keepdim=True), "classifier", layers["classifier"], activated=False).flatten(1)


@pytest.fixture
def mcunet_weights(development_data):
    folder = development_data / "weights"
    layers = json.loads((folder / "mcunet-5fps-architecture.json").read_text())
    return from_file(folder / "mcunet-5fps-imagenet.safetensors", None, RESOLUTIONS["mcunet"]), layers


def test_mcunet_with_its_published_weights_is_the_published_network(mcunet_weights):
    weights, layers = mcunet_weights
    model = make_model("mcunet", 1000)
    load_into(model, weights.tensors, "published")
    x = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), folded(weights.tensors, layers, x), rtol=1e-4, atol=1e-4)


def test_mcunets_published_weights_fit_another_number_of_classes(mcunet_weights):
    weights, _ = mcunet_weights
    model = make_model("mcunet", 10)
    start = model.classifier.weight.clone()
    load_into(model, weights.tensors, "published")
    assert torch.equal(model.classifier.weight, start)
    assert torch.equal(model.first_conv[0].weight, weights.tensors["first_conv.weight"])


def test_mcunets_published_weights_know_imagenet(mcunet_weights, development_data):
    weights, _ = mcunet_weights
    assert weights.preprocessing.resolution == 128
    model = make_model("mcunet", 1000).eval()
    load_into(model, weights.tensors, "published")
    right = 0
    for number, folder in zip(IMAGENETTE, sorted((development_data / "imagenette/val").iterdir()), strict=True):
        images = [np.array(Image.open(file).convert("RGB"))[None] for file in sorted(folder.iterdir())[:10]]
        with torch.no_grad():
            scores = model(torch.cat([weights.preprocessing(image) for image in images]))
        right += int((scores.argmax(1) == number).sum())
    # 59.8 of 100 were seen on 400 pictures; a thousandth of them would be chance.
    assert right > 40


def test_mcunets_own_weights_load_as_they_are():
    source, model = make_model("mcunet", 3), make_model("mcunet", 3)
    load_into(model, source.state_dict(), "a checkpoint")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True))


@pytest.mark.parametrize("change", ["first_conv.bias", "blocks.3.depthwise.weight"])
def test_published_weights_that_lack_a_tensor_are_refused(mcunet_weights, change):
    tensors = {name: tensor for name, tensor in mcunet_weights[0].tensors.items() if name != change}
    with pytest.raises(ConfigError, match="belong to another model"):
        load_into(make_model("mcunet", 1000), tensors, "published")


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "regnet_x_400mf"]
)
def test_any_classifier_of_torchvision_is_had_by_its_name(name):
    model = make_model(name, 7).eval()
    assert name in other_classifiers()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def test_auxiliary_heads_are_left_out():
    assert make_model("googlenet", 5).aux1 is None


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_weights_for_other_classes_keep_the_new_head(name):
    source, model = make_model(name, 1000), make_model(name, 10)
    load_into(model, source.state_dict(), "elsewhere")
    first = convolutions(model)[0]
    assert torch.equal(model.get_submodule(first).weight, source.get_submodule(first).weight)


def test_an_unknown_model_names_the_nearest(capsys, tmp_path):
    error = refused(capsys, ["--model", "mobilenet_v3_smal"], tmp_path / "run")
    assert "mcunet" in error
    assert "did you mean 'mobilenet_v3_small'" in error


def test_mcunet_has_no_imagenet_weights_at_torchvision(capsys, tmp_path):
    assert "name a file" in refused(capsys, ["--model", "mcunet", "--weights", "imagenet"], tmp_path / "run")
    with pytest.raises(ConfigError, match="torchvision has none of mcunet"):
        from_torchvision("mcunet", None)


def test_mcunet_has_one_width(capsys, tmp_path):
    assert "--width is for mobilenet_v2" in refused(capsys, ["--model", "mcunet", "--width", "0.5"], tmp_path / "run")


def test_a_fleet_trains_mcunet(tmp_path):
    small = [
        "--dataset",
        "synthetic",
        "--weights",
        "none",
        "--model",
        "mcunet",
        "--max-examples",
        "120",
        "--resolution",
        "32",
    ]
    small += ["--max-test-examples", "40", "--clients", "2", "--rounds", "1", "--layers", "2", "--method", "auto"]
    assert main([*small, "--budget", "64KB", "--out", str(tmp_path / "run")]) == 0
