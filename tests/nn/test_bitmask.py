"""Masks in one bit an element: PyTorch's own gradients, in every layout, type and bound."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedact.compression.lowrank.algebra import memory_order
from fedact.nn.layers import MaskedReLU, MaskedReLU6
from fedact.nn.layers.bitmask import CHUNK, apply_mask, flattened, pack_mask, restored

shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
seeds = st.integers(0, 99)


def laid_out(shape: tuple[int, ...], seed: int) -> Tensor:
    """A tensor whose dimensions lie in memory in any order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(shape), generator=generator).tolist()
    x = torch.randn([shape[dimension] for dimension in order], generator=generator)
    return x.permute(sorted(range(len(order)), key=lambda place: order[place]))


@given(shapes, seeds)
def test_elements_are_read_as_they_lie_in_memory_and_put_back(shape, seed):
    x = laid_out(shape, seed)
    order = memory_order(x)
    flat = flattened(x, order)
    assert torch.equal(restored(flat, x.shape, order), x)
    assert flat.data_ptr() == x.data_ptr()


@given(shapes, seeds, seeds)
def test_zeros_are_where_the_mask_says_whatever_the_layouts(shape, seed, other):
    x, grad = laid_out(shape, seed), laid_out(shape, other)
    order = memory_order(x)
    found = apply_mask(grad, pack_mask(x, order, lambda part: part > 0), order)
    assert torch.equal(found, grad.masked_fill(x <= 0, 0))
    assert found.permute(order).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [7, CHUNK - 1, CHUNK, CHUNK + 9])
def test_infinities_and_nans_are_stopped_and_pass_in_every_type_and_size(dtype, count):
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    grad = torch.full_like(x, torch.inf)
    grad[::3] = torch.nan
    found = apply_mask(grad, pack_mask(x, [0], lambda part: part > 0), [0])
    assert torch.equal(found.isnan(), grad.isnan() & (x > 0))
    assert torch.equal(found.isinf(), grad.isinf() & (x > 0))
    assert not found[x <= 0].any()


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (3, 12, 96, 96), (5, 12, 96, 96), (2, 7, 201, 99)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])
def test_large_gradients_are_masked_and_scaled_whatever_their_layout(shape, layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
    scale = torch.randn(shape[1], generator=generator)
    packed = pack_mask(x, [0, 2, 3, 1], lambda part: part > 0)
    expected = grad.masked_fill(x <= 0, 0)
    assert torch.equal(apply_mask(grad, packed, [0, 2, 3, 1]), expected)
    assert torch.equal(apply_mask(grad, packed, [0, 2, 3, 1], scale), expected * scale.view(-1, 1, 1))


@pytest.mark.parametrize("function", [F.relu, F.relu6], ids=["relu", "relu6"])
@pytest.mark.parametrize("kept", [True, False], ids=["from the output", "from the mask"])
def test_the_gradient_at_bounds_and_through_nans_is_pytorchs(function, kept):
    module = {F.relu: MaskedReLU, F.relu6: MaskedReLU6}[function]()
    module.output_is_saved = kept
    values = [-torch.inf, -1.0, -0.0, 0.0, 1e-40, 3.0, 6.0, 6.000001, 9.0, torch.inf, torch.nan]
    ours, plain = (torch.tensor(values, requires_grad=True) for _ in range(2))
    grad = torch.arange(1.0, 12.0)
    module(ours).backward(grad)
    function(plain).backward(grad)
    assert torch.equal(ours.grad, plain.grad)
