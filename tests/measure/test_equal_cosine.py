"""Bytes at equal gradient cosine: what is captured is what the layer sees, and the least is really measured."""

import pytest
import torch
import torch.nn.functional as F

from fedact.compression import families, make_method
from fedact.config.errors import ConfigError
from fedact.measure.equal_cosine import LeastBytes, bytes_ratios, capture, convolutions_to_compare, least_bytes
from tests.support.networks import MODELS, batch, normed, shared


@pytest.mark.parametrize("make", [make for make in MODELS if make is not shared])
def test_the_captured_layers_have_autograds_weight_gradient(make):
    torch.manual_seed(0)
    model, (x, y) = make().eval(), batch(4)
    names = convolutions_to_compare(model, 2, 0)
    captured = capture(model, (x, y), names)
    F.cross_entropy(model(x), y).backward()
    for each in captured:
        assert torch.allclose(each.exact, model.get_submodule(each.name).weight.grad, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_last_and_every_so_many_th_before_are_chosen():
    model = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(52)))
    assert convolutions_to_compare(model, 6, 10) == [str(place) for place in (6, 16, 26, 36, *range(46, 52))]
    assert convolutions_to_compare(model, 2, 0) == ["50", "51"]
    with pytest.raises(ConfigError, match="52 convolutions"):
        convolutions_to_compare(model, 53, 10)


@pytest.mark.parametrize("base", [each for each in families() if len(each.traits.sweep.values) > 1], ids=str)
def test_the_least_bytes_are_measured_and_grow_with_the_cosine(base):
    torch.manual_seed(0)
    (captured,) = capture(normed().eval(), batch(8), ["3"])
    found = least_bytes(captured, base, (0.8, 0.95, 0.99))
    assert [each.bytes for each in found] == sorted(each.bytes for each in found)
    for each in (each for each in found if each.method):
        method = make_method(each.method)
        compressed = method.compress(captured.x, method.start(0))
        kept = {t.data_ptr(): t.nbytes for t in (*compressed.tensors, *compressed.state.tensors)}
        assert each.bytes == sum(kept.values())
        assert each.cosine >= each.wanted


def test_bisection_is_finer_than_the_ladder_and_no_setting_counts_as_the_tensor():
    torch.manual_seed(0)
    (captured,) = capture(normed().eval(), batch(8), ["3"])
    coarse = make_method("hosvd").traits.sweep.values
    found = least_bytes(captured, make_method("hosvd"), (0.9, 0.96, 0.97, 0.985, 0.99))
    assert any(make_method(least.method).variance not in coarse for least in found)
    (never,) = least_bytes(captured, make_method("gradient_filter"), (1.1,))
    assert never.method is None
    assert never.bytes == never.exact_bytes == captured.x.nbytes


def test_ratios_are_geometric_means_of_large_layers_and_the_worst_of_small_ones():
    def least(layer, family, size):
        return LeastBytes(layer, family, 0.95, family, size, 0.96, 10**6)

    found = [least("a", "hosvd", 40_000), least("b", "hosvd", 90_000), least("c", "hosvd", 1000), least("d", "hosvd", 500)]
    found += [least("a", "x", 20_000), least("b", "x", 180_000), least("c", "x", 1500), least("d", "x", 600)]
    baseline, ours = bytes_ratios(found)
    assert (baseline.typical, baseline.worst) == (1.0, 1.0)
    assert ours.typical == pytest.approx(1.0)
    assert ours.worst == 1.5
