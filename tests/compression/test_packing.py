"""Codes packed into bytes and groups with a scale: nothing lost, no byte too many, at most one step off."""

from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedact.compression.packing import (
    Quantized,
    dequantize,
    pack_codes,
    packed_bytes,
    quantize,
    quantized_bytes,
    unpack_codes,
)
from fedact.measure.memory import measure_memory, stored_bytes

all_bits = st.sampled_from([1, 2, 4, 8])
quantized_bits = st.sampled_from([2, 4, 8])
groups = st.sampled_from([1, 3, 16, 64, 1000])
numbers = st.floats(-1e6, 1e6, width=32).map(lambda value: 0.0 if abs(value) < 1e-6 else value)
values = st.lists(numbers, min_size=1, max_size=80).map(torch.tensor)
seeds = st.integers(0, 2**31)


def randomness(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


def rebuilt(x: torch.Tensor, quantized: Quantized, bits: int, group: int) -> torch.Tensor:
    return dequantize(quantized, bits, group, x.shape, x.dtype)


def by_element(scales: torch.Tensor, x: torch.Tensor, group: int) -> torch.Tensor:
    return scales.float().repeat_interleave(group)[: x.numel()].view(x.shape)


@given(all_bits, st.lists(st.integers(0, 255), max_size=70))
def test_packed_codes_unpack_to_what_they_were_in_as_few_bytes_as_hold_them(bits, numbers):
    codes = torch.tensor([number % 2**bits for number in numbers], dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(packed, bits, len(codes)), codes)
    assert stored_bytes([packed]) == len(packed) == packed_bytes(len(codes), bits) == ceil(len(codes) * bits / 8)


def test_the_first_code_is_in_the_lowest_bits_and_the_rest_of_the_last_byte_is_zero():
    assert pack_codes(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist() == [0b00111001, 0b10]
    assert pack_codes(torch.tensor([[1, 0, 1], [1, 1, 1]], dtype=torch.uint8), 1).tolist() == [0b111101]


@given(values, quantized_bits, groups, st.one_of(st.none(), seeds))
def test_quantized_bytes_are_exact(x, bits, group, seed):
    quantized = quantize(x, bits, group, randomness(seed))
    assert stored_bytes(quantized) == quantized_bytes(x.numel(), bits, group) == sum(part.nbytes for part in quantized)
    assert quantized_bytes(x.numel(), bits, group) == ceil(x.numel() * bits / 8) + 4 * ceil(x.numel() / group)


@given(values, quantized_bits, groups, st.one_of(st.none(), seeds))
def test_the_error_is_at_most_one_step_and_half_of_one_to_the_nearest(x, bits, group, seed):
    quantized = quantize(x, bits, group, randomness(seed))
    step, low = (by_element(scales, x, group) for scales in (quantized.steps, quantized.lows))
    error = (rebuilt(x, quantized, bits, group) - x).abs()
    rounding = 1e-6 * (low.abs() + x.abs())
    assert (error <= step * (0.5 if seed is None else 1) + rounding).all()


@given(values, quantized_bits, groups)
def test_a_groups_range_takes_in_its_values_and_little_more(x, bits, group):
    quantized = quantize(x, bits, group)
    for part, low, step in zip(x.split(group), quantized.lows.float(), quantized.steps.float(), strict=True):
        high = low + step * (2**bits - 1)
        size = float(part.abs().max())
        assert low <= part.min()
        assert high >= part.max() - 1e-6 * size
        assert high - low <= 1.02 * float(part.max() - part.min()) + 0.02 * size


@given(st.integers(1, 80), quantized_bits, groups, st.sampled_from([0.0, 1.5, -2.0]), st.one_of(st.none(), seeds))
def test_a_constant_that_the_scales_can_say_comes_back_exactly(count, bits, group, value, seed):
    x = torch.full((count,), value)
    assert torch.equal(rebuilt(x, quantize(x, bits, group, randomness(seed)), bits, group), x)


@given(values, quantized_bits, st.integers(0, 79), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_what_is_no_number_spoils_its_own_group_and_no_other(x, bits, place, bad):
    clean, place, group = x.clone(), place % len(x), 16
    x[place] = bad
    found = rebuilt(x, quantize(x, bits, group), bits, group)
    spoiled = torch.arange(len(x)) // group == place // group
    assert not found[spoiled].isfinite().any()
    assert torch.equal(found[~spoiled], rebuilt(clean, quantize(clean, bits, group), bits, group)[~spoiled])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_type_and_memory_format_comes_back_as_it_was(dtype):
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = rebuilt(x, quantize(x, 8, 64), 8, 64)
    turned = x.to(memory_format=torch.channels_last)
    assert found.dtype == dtype
    assert torch.equal(found, rebuilt(turned, quantize(turned, 8, 64), 8, 64))
    assert float((found - x).abs().max()) < 0.03


def test_a_group_larger_than_the_tensor_takes_no_memory_for_what_is_not_there():
    with measure_memory(nn.Identity()) as memory:
        quantized = quantize(torch.arange(10.0), 8, 2**20)
    assert memory.peak_bytes < 10_000
    assert rebuilt(torch.arange(10.0), quantized, 8, 2**20).tolist() == pytest.approx(range(10), abs=0.03)


@pytest.mark.parametrize(("bits", "group"), [(2, 256), (4, 100), (8, 3)])
def test_a_large_tensor_is_converted_in_parts_that_do_not_show(bits, group):
    x = torch.randn(11, 40, 37, 41, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    found, flat = quantize(x, bits, group), quantize(x.flatten()[None], bits, group)
    assert all(torch.equal(part, same) for part, same in zip(found, flat, strict=True))
    assert torch.equal(rebuilt(x, found, bits, group).flatten()[None], rebuilt(x.flatten()[None], flat, bits, group))
    with measure_memory(nn.Identity(), inputs=x) as memory:
        quantize(x[:, :, :32, :32], 2, 256, randomness(0))
    assert memory.peak_bytes < 2 * x[:, :, :32, :32].numel() * 4
