"""The segmentation networks' names, and the weights that they start from."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, get_model_weights

from fedact.config.errors import ConfigError
from fedact.models import SEGMENTERS, encoder_of, make_segmenter
from fedact.models.weights import from_torchvision, load_into
from fedact.nn.surgery import head
from tests.support.pixelwise import CLASSES, GATED, batch, built

pytest.importorskip("segmentation_models_pytorch")


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown segmentation model 'pspnet_resnet19'.*did you mean 'pspnet_resnet18'\?"):
        make_segmenter("pspnet_resnet19", CLASSES)


def test_without_the_extra_its_networks_are_refused_and_torchvisions_are_not(monkeypatch):
    monkeypatch.setattr("fedact.config.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pspnet_resnet18 needs the extra segmentation, .* pip install -e '.\[segment"):
        make_segmenter("pspnet_resnet18", CLASSES)
    assert make_segmenter("lraspp_mobilenet_v3_large", CLASSES)


@pytest.mark.parametrize("decoder", ["pspnet", "deeplabv3", "upernet"])
@torch.no_grad()
def test_imagenets_mobilenet_v2_becomes_the_encoder(decoder, development_data):
    tensors = load_file(development_data / "weights" / "mobilenet_v2-imagenet.safetensors")
    classifier, model = get_model("mobilenet_v2").eval(), built(f"{decoder}_mobilenet_v2")
    classifier.load_state_dict(tensors)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_into(model, tensors, "a file")
    for name, tensor in model.state_dict().items():
        expected = tensors[name.removeprefix("encoder.")] if name.startswith("encoder.") else start[name]
        assert torch.equal(tensor, expected), name
    if decoder == "upernet":
        x, _ = batch()
        torch.testing.assert_close(model.encoder(x)[-1], classifier.features(x))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_imagenets_weights_are_those_of_the_encoders_classifier(name, monkeypatch):
    published, tensors = get_model_weights(encoder_of(name)), {"a": torch.zeros(1)}
    monkeypatch.setattr(published, "get_state_dict", lambda weights, **_: tensors)
    assert from_torchvision(name, 64).tensors is tensors


@pytest.mark.parametrize("name", ["pspnet_resnet18", *GATED, pytest.param("fcn_resnet50", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_a_classifiers_weights_become_the_encoder(name):
    classifier, model = get_model(encoder_of(name)), built(name)
    load_into(model, classifier.state_dict(), "a file")
    encoder = model.get_submodule(model.encoder_name)
    ours, own = list(encoder.state_dict().values()), list(classifier.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(ours, own, strict=False))


def test_an_encoder_that_is_another_one_or_not_whole_is_refused():
    model = built("pspnet_mobilenet_v2")
    with pytest.raises(ConfigError, match=r"belong to another model: .* tensors do not fit"):
        load_into(model, get_model("resnet18").state_dict(), "a file")
    tensors = get_model("mobilenet_v2").state_dict()
    del tensors["features.3.conv.2.weight"]
    with pytest.raises(ConfigError, match=r"1 tensors do not fit \(encoder.features.3.conv.2.weight\)"):
        load_into(model, tensors, "a file")
    with pytest.raises(ConfigError, match="tensors do not fit"):
        load_into(model, built("deeplabv3_mobilenet_v2").state_dict(), "a file")


@pytest.mark.parametrize("name", ["pspnet_resnet18", "lraspp_mobilenet_v3_large"])
def test_a_whole_networks_weights_load_but_for_a_head_of_other_classes(name):
    model, other = built(name), built(name, CLASSES + 6)
    for parameter in other.parameters():
        nn.init.uniform_(parameter)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    load_into(model, other.state_dict(), "a file")
    for key, tensor in model.state_dict().items():
        of_head = key.rpartition(".")[0] in head(model)
        assert torch.equal(tensor, start[key] if of_head else other.state_dict()[key]), key


@pytest.mark.exhaustive
def test_published_weights_load_without_their_second_head():
    published = get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    model = built("fcn_resnet50")
    load_into(model, published.state_dict(), "a file")
    assert torch.equal(model.classifier[0].weight, published.classifier[0].weight)
