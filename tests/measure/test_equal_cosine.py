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


def least(layer: str, family: str, size: int) -> LeastBytes:
    return LeastBytes(layer, family, 0.95, family, size, 0.96, 10**6)


SIZES = {
    "hosvd": (40_000, 90_000, 1000, 500),
    "hosvd:bits=8": (10_000, 30_000, 250, 200),
    "x": (20_000, 180_000, 1500, 100),
}
"""Bytes of four layers; the first two are large, by what published HOSVD needs."""


def test_ratios_are_geometric_means_of_large_layers_and_the_worst_of_small_ones():
    found = [
        least(layer, family, size) for family, sizes in SIZES.items() for layer, size in zip("abcd", sizes, strict=True)
    ]
    ratios = {(each.family, each.baseline): each for each in bytes_ratios(found)}
    ours = ratios["x", "hosvd"]
    assert ours.typical == pytest.approx((20_000 / 40_000 * 180_000 / 90_000) ** 0.5)
    assert (ours.worst, ours.more_in, ours.cases) == (1.5, 2, 4)
    ours = ratios["x", "hosvd:bits=8"]
    # The same layers are large whatever they are compared with: by what published HOSVD needs.
    assert ours.typical == pytest.approx((20_000 / 10_000 * 180_000 / 30_000) ** 0.5)
    assert (ours.worst, ours.more_in, ours.cases) == (6.0, 3, 4)
    for name in ("hosvd", "hosvd:bits=8"):
        assert (ratios[name, name].typical, ratios[name, name].worst, ratios[name, name].more_in) == (1.0, 1.0, 0)


def test_the_honest_baseline_comes_first():
    found = [least("a", family, sizes[0]) for family, sizes in SIZES.items()]
    assert [each.baseline for each in bytes_ratios(found)] == ["hosvd:bits=8"] * 3 + ["hosvd"] * 3
