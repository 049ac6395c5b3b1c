"""Transformers by name: their sizes, their published files, timm's."""

import pytest
import torch

from fedact.config.errors import EXTRAS, ConfigError
from fedact.models import make_model
from fedact.models.weights import from_timm, load_into
from fedact.nn.surgery import body_layers, head
from tests.support.refusal import refused

TINY = "timm:test_vit"
"""timm's smallest vision transformer, of its own tests."""


@pytest.mark.parametrize(("name", "side"), [("vit_tiny", 64), ("vit_tiny", 32), ("swin_t", 64), (TINY, 64)])
def test_a_transformer_takes_images_of_the_runs_size(name, side):
    model = make_model(name, 7, resolution=side).eval()
    assert model(torch.randn(1, 3, side, side)).shape == (1, 7)


def test_vit_tiny_has_twelve_layers_of_four():
    model = make_model("vit_tiny", 10)
    assert len(body_layers(model)) == 1 + 12 * 4
    assert head(model) == ["heads.head"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_390_410


def test_a_size_that_patches_do_not_fit_in_is_refused(capsys, tmp_path):
    arguments = ["--model", "vit_tiny", "--resolution", "60", "--weights", "none", "--dataset", "synthetic"]
    assert "--resolution 60: vit_tiny takes multiples of 8" in refused(capsys, arguments, tmp_path / "run")
    with pytest.raises(ConfigError, match="vit_b_16 takes multiples of 16"):
        make_model("vit_b_16", 10, resolution=40)


def test_position_embeddings_of_another_size_are_interpolated():
    source, model = make_model("vit_tiny", 10, resolution=64), make_model("vit_tiny", 10, resolution=32)
    load_into(model, source.state_dict(), "elsewhere")
    assert torch.equal(model.conv_proj.weight, source.conv_proj.weight)
    class_token = model.encoder.pos_embedding[:, 0]
    assert torch.equal(class_token, source.encoder.pos_embedding[:, 0])
    with torch.no_grad():
        source.encoder.pos_embedding.fill_(0.25)
    load_into(model, source.state_dict(), "elsewhere")
    torch.testing.assert_close(model.encoder.pos_embedding, torch.full_like(model.encoder.pos_embedding, 0.25))


def test_timms_position_embeddings_are_interpolated_too():
    source, model = make_model(TINY, 10, resolution=160), make_model(TINY, 10, resolution=64)
    assert source.pos_embed.shape != model.pos_embed.shape
    load_into(model, source.state_dict(), "elsewhere")
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_published_names_of_torchvisions_mlp_are_todays():
    source = make_model("vit_tiny", 1000)
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): t
        for name, t in source.state_dict().items()
    }
    model = make_model("vit_tiny", 10)
    load_into(model, old, "published")
    assert torch.equal(model.encoder.layers[3].mlp[0].weight, source.encoder.layers[3].mlp[0].weight)


def test_weights_of_another_width_are_refused_in_one_line():
    model = make_model("vit_tiny", 10)
    tensors = model.state_dict()
    tensors["encoder.pos_embedding"] = torch.zeros(1, 197, 768)
    with pytest.raises(ConfigError, match=r"belong to another model: 1 tensors do not fit \(encoder.pos_embedding\)"):
        load_into(model, tensors, "elsewhere")


def test_timms_heads_are_the_ones_timm_names():
    assert head(make_model("timm:test_vit", 3)) == ["head"]
    assert head(make_model("timm:test_resnet", 3)) == ["fc"]
    assert head(make_model("timm:deit_tiny_distilled_patch16_224", 3, resolution=32)) == ["head", "head_dist"]


def test_an_unknown_name_of_timms_has_a_nearest_match(capsys, tmp_path):
    error = refused(capsys, ["--model", "timm:vit_tny"], tmp_path / "run")
    assert "timm:vit_tny" in error
    assert "did you mean 'vit_tiny_patch16_224'" in error


def test_without_timm_one_line_names_the_extra(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(EXTRAS, "timm", ("no_such_package",))
    error = refused(capsys, ["--model", TINY], tmp_path / "run")
    assert "needs the extra timm" in error


def test_timms_pretrained_weights_are_refused_offline_in_one_line(monkeypatch):
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(ConfigError, match="--weights imagenet: timm's weights of timm:test_vit are neither"):
        from_timm(TINY, None)


def offline(*_, **__):
    raise OSError("no network\nhere")


def test_timms_pretrained_weights_come_with_their_preprocessing(monkeypatch):
    import timm

    make = timm.create_model
    monkeypatch.setattr("timm.create_model", lambda name, pretrained=False, **settings: make(name, **settings))
    weights = from_timm(TINY, None)
    assert weights.preprocessing.resolution == 160
    model = make_model(TINY, 10, resolution=64)
    load_into(model, weights.tensors, "timm")
    assert torch.equal(model.patch_embed.proj.weight, weights.tensors["patch_embed.proj.weight"])
