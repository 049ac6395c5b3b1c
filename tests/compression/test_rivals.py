"""DIVISION, top-k and random projections against what their papers say, computed in another way."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedact
from fedact.compression import make_method
from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.operations import Convolution
from tests.support.laws import relative_error
from tests.support.planned import batch, net

SHAPES = [(3, 4, 6, 7), (2, 5, 9), (2, 5, 3, 3, 4), (6, 10)]
"""Pictures, tokens, volumes, vectors: the channels are second."""


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", ["division:block=2", "division:block=4,bits=4", "random_projection:ratio=0.4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_of_the_reconstruction_is_the_tensor(text, shape):
    x, method, draws = noise(shape), make_method(text), 400
    state, total = method.start(0), torch.zeros(shape)
    for _ in range(draws):
        compressed = method.compress(x, state)
        state, total = compressed.state, total + method.reconstruct(compressed)
    single = relative_error(method.reconstruct(compressed), x)
    # The error of a mean of n draws is that of one, divided by the root of n.
    assert relative_error(total / draws, x) < 2 * single / draws**0.5


def test_divisions_remainder_is_of_the_means_of_blocks():
    x = noise((2, 3, 8, 12))
    means = F.interpolate(F.avg_pool2d(x, 4).bfloat16().float(), scale_factor=4)
    remainder = x - means
    rebuilt = make_method("division:block=4,bits=2").reconstruct(make_method("division:block=4,bits=2").compress(x))
    codes = (rebuilt - means).flatten(2)
    low, high = codes.amin(2), codes.amax(2)
    assert all(len(torch.unique((each * 1e4).round())) <= 4 for each in codes.flatten(0, 1))
    assert bool((low >= remainder.flatten(2).amin(2) - 0.06).all())
    assert bool((high <= remainder.flatten(2).amax(2) + 0.06).all())


def test_a_maps_lowest_frequency_alone_survives_division_exactly():
    x = noise((4, 3, 2, 2)).bfloat16().float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    method = make_method("division:bits=2")
    assert torch.equal(method.reconstruct(method.compress(x)), x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.3, 0.02])
def test_topk_keeps_the_largest_elements_of_every_example_and_nothing_else(share, shape):
    x, method = noise(shape), make_method(f"topk:share={share}")
    rebuilt = method.reconstruct(method.compress(x))
    for example, kept in zip(x, rebuilt, strict=True):
        ordered = sorted(example.flatten().tolist(), key=abs, reverse=True)[: int((kept != 0).sum())]
        assert sorted(kept[kept != 0].tolist()) == sorted(ordered)
        assert len(ordered) == -(-int(1000 * share) * example.numel() // 1000)


@pytest.mark.parametrize(
    ("operation", "shape", "outputs", "weight"),
    [
        (MatrixProduct(), (70, 12), (70, 5), (5, 12)),
        (MatrixProduct(channels=1), (3, 8, 50), (3, 6, 50), (6, 8)),
        (Convolution((1, 1), (0, 0), (1, 1), 1), (4, 6, 9, 10), (4, 5, 9, 10), (5, 6, 1, 1)),
    ],
)
def test_the_projections_weight_gradient_is_that_of_the_reconstruction(operation, shape, outputs, weight):
    method = make_method("random_projection:ratio=0.3")
    x, grad, compressed = noise(shape).double(), noise(outputs).double(), method.compress(noise(shape).double())
    actual = method.weight_gradient(compressed, grad, noise(weight).double(), operation)
    expected = operation.weight_gradient(method.reconstruct(compressed), grad, noise(weight).double())
    assert relative_error(actual, expected) < 1e-12
    assert relative_error(actual, operation.weight_gradient(x, grad, noise(weight).double())) > 0.1


@pytest.mark.parametrize("name", ["division", "topk", "random_projection"])
def test_a_budget_chooses_what_is_not_given(name):
    found = []
    for budget in (2_940, 6_000):
        plan = fedact.make_plan(net(), budget, batch(1), name, layers=2, scope="saved", recompute=0)
        assert plan.saved_bytes <= budget
        found.append([kept.method for kept in plan.kept])
    assert all(method == "exact" or method.startswith(f"{name}:") for each in found for method in each)
    assert found[0] != found[1]
