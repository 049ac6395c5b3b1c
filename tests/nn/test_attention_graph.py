"""What the traced code of transformers says: who reads whom, where a frozen part ends."""

import copy
import warnings

import pytest
import torch

from fedact.nn.gradient_path import downstream
from fedact.nn.graph import consumers, traced
from fedact.nn.prefix.folded import folded_prefix
from fedact.nn.prefix.split import split
from fedact.nn.surgery import body_layers, trained_parameters
from tests.support.networks import chunked, measure, train
from tests.support.transformers import NETWORKS, batch


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_can_be_traced_with_all_their_layers(name):
    make, _ = NETWORKS[name]
    model = make()
    called = {str(node.target) for node in traced(model).find_nodes(op="call_module")}
    assert set(body_layers(model)) <= called


def test_a_gradient_passes_what_comes_after_an_output_projection():
    make, _ = NETWORKS["vit"]
    block = "encoder.layers.encoder_layer_1"
    path = downstream(make(), [f"{block}.self_attention.out_proj"])
    assert f"{block}.self_attention" not in path
    assert {f"{block}.ln_2", f"{block}.mlp.0", "heads.head"} <= path
    assert f"{block}.ln_1" not in path
    assert f"{block}.self_attention.out_proj" in downstream(make(), [f"{block}.self_attention"])
    make, _ = NETWORKS["swin"]
    path = downstream(make(), ["features.3.0.attn.proj"])
    assert "features.3.0.mlp.0" in path
    assert "features.3.0.attn.qkv" not in path
    assert "features.3.0.attn.proj" in downstream(make(), ["features.3.0.attn.qkv"])


def test_what_is_inside_pytorchs_encoder_has_a_path_behind_it():
    make, _ = NETWORKS["encoder"]
    assert "head" in downstream(make(), ["encoder.layers.1.linear2"])


def test_the_input_projection_reads_the_norm_before_it():
    make, _ = NETWORKS["vit"]
    assert consumers(make())["encoder.layers.encoder_layer_1.ln_1"] == [{"encoder.layers.encoder_layer_1.self_attention"}]
    make, _ = NETWORKS["swin"]
    assert consumers(make())["features.3.0.norm1"] == [{"features.3.0.attn.qkv"}]


def installed(model, chunk: int, layers: int, method: str = "exact"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chunked(copy.deepcopy(model), chunk, method, layers)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_a_frozen_part_is_split_off_anywhere_in_a_block(name, layers):
    make, size = NETWORKS[name]
    model = make().eval()
    x, y = batch(size, 4)
    whole, parts = installed(model, 0, layers), installed(model, 2, layers)
    cut = split(whole)
    assert cut is not None
    assert torch.equal(whole(x), cut.suffix(*cut.prefix(x)))
    memories = [measure(one, lambda one=one: train(one, x, y), (x, y)) for one in (whole, parts)]
    assert memories[0].saved_bytes == memories[1].saved_bytes
    for ours, theirs in zip(*(trained_parameters(one).values() for one in (whole, parts)), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "swin", "timm's vit"])
def test_a_fast_copy_of_the_frozen_part_computes_the_same(name):
    make, size = NETWORKS[name]
    model = installed(make().eval(), 0, 3).eval()
    cut, (x, _) = split(model), batch(size, 4)
    fast = folded_prefix(cut, x)
    assert fast is not None
    for ours, theirs in zip(fast(x), cut.prefix(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
