"""Every decomposition against an independent one: numpy's SVD, ST-HOSVD in numpy, tensorly, loops."""

import random

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker
from torch import nn

from fedact.compression import Method, make_method, method_name
from fedact.compression.gradient_filter import patch_means, patch_sizes, spread
from fedact.compression.lowrank.algebra import compose
from fedact.compression.lowrank.bit_depth import GROUP, BitDepth, signed
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.packing import dequantize, quantize
from fedact.measure.cost import FlopCounter
from fedact.measure.memory import measure_memory, stored_bytes
from tests.support.laws import INPUTS, relative_error
from tests.support.portions import examples

shapes = st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
kinds = st.sampled_from(["gaussian", "decaying", "relu6_like"])
seeds = st.integers(0, 99)
variances = st.floats(0.1, 0.999)
four_ranks = st.tuples(*[st.integers(1, 6)] * 4)


def tensor(kind: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return INPUTS[kind](shape, torch.Generator().manual_seed(seed)).double()


def rebuilt(method: Method, x: torch.Tensor) -> np.ndarray:
    return method.reconstruct(method.compress(x)).numpy()


def energies(x: np.ndarray, mode: int) -> np.ndarray:
    return np.linalg.svd(tensorly.unfold(x, mode), compute_uv=False) ** 2


def explains(energy: np.ndarray, rank: int, variance: float) -> bool:
    """Whether the rank is the smallest that reaches the variance, to rounding."""
    share = np.cumsum(energy) / max(energy.sum(), 1e-300)
    return share[rank - 1] >= variance - 1e-9 and (rank == 1 or share[rank - 2] < variance + 1e-9)


def leading(x: np.ndarray, mode: int, rank: int) -> np.ndarray:
    left = np.linalg.svd(tensorly.unfold(x, mode), full_matrices=False)[0][:, :rank]
    return left @ left.T


@pytest.mark.parametrize(("name", "mode"), [("svd", 0), ("channel_svd", 1)])
@given(shape=shapes, kind=kinds, seed=seeds, variance=variances)
@examples(60)
def test_an_svds_rank_is_numpys_and_its_error_the_energy_left_out(name, mode, shape, kind, seed, variance):
    x, method = tensor(kind, shape, seed), make_method(f"{name}:variance={variance}")
    if not x.any():
        return
    energy, rank = energies(x.numpy(), mode), method.compress(x).tensors[0].shape[mode]
    assert explains(energy, rank, variance)
    # Eckart and Young: no matrix of this rank is nearer.
    assert np.isclose(((rebuilt(method, x) - x.numpy()) ** 2).sum(), energy[rank:].sum(), atol=1e-9 * energy.sum())


@pytest.mark.parametrize(("name", "shape", "mode"), [("svd", (6, 10), 0), ("channel_svd", (3, 5, 8), 1)])
def test_an_svd_of_a_linear_layers_input_is_numpys(name, shape, mode):
    x = tensor("gaussian", shape)
    expected = tensorly.tenalg.mode_dot(x.numpy(), leading(x.numpy(), mode, 2), mode)
    assert np.allclose(rebuilt(make_method(f"{name}:ranks=2"), x), expected, atol=1e-9)


@pytest.mark.parametrize("solver", ["gram", "svd"])
@given(shape=shapes, kind=kinds, seed=seeds, variance=variances)
@examples(60)
def test_sequential_truncation_is_st_hosvd(solver, shape, kind, seed, variance):
    x = tensor(kind, shape, seed)
    core, *factors = HOSVD(variance=variance, truncation="sequential", solver=solver).compress(x).tensors
    left = x.numpy()
    for mode in sorted(range(4), key=lambda mode: (mode == 0, shape[mode])):
        u = factors[mode].numpy()
        assert not left.any() or explains(energies(left, mode), u.shape[1], variance)
        kept = np.linalg.norm(u.T @ tensorly.unfold(left, mode)) ** 2
        assert np.isclose(kept, energies(left, mode)[: u.shape[1]].sum(), rtol=1e-8)
        left = tensorly.tenalg.mode_dot(left, u.T, mode)
    assert np.allclose(core.numpy(), left, atol=1e-9)


@given(shape=shapes, kind=kinds, seed=seeds, ranks=four_ranks)
@examples(60)
def test_hooi_is_at_least_as_good_as_hosvd_and_both_truncations_are_within_their_bound(shape, kind, seed, ranks):
    x = tensor(kind, shape, seed)
    settings_of = ("", ",solver=svd", ",truncation=sequential")
    texts = ["tucker:ranks={}", *(f"hosvd:ranks={{}}{more}" for more in settings_of)]
    methods = [make_method(text.format("x".join(map(str, ranks)))) for text in texts]
    best, published, by_svd, sequential = (np.linalg.norm(rebuilt(method, x) - x.numpy()) for method in methods)
    rounding = 1e-7 * np.linalg.norm(x)
    assert best <= min(published, by_svd) + rounding
    # Both are at most sqrt(4) times as far off as the best factors of these ranks.
    assert max(published, by_svd, sequential) <= 2 * best + rounding


@given(shape=shapes, kind=kinds, seed=seeds, variance=variances)
@examples(40)
def test_tucker_is_tensorlys_partial_tucker(shape, kind, seed, variance):
    x = tensor(kind, shape, seed)
    method = make_method(f"tucker:variance={variance}")
    core, *factors = method.compress(x).tensors
    if not x.any():
        return
    with np.errstate(invalid="ignore", divide="ignore"):
        (oracle, others), _ = partial_tucker(x.numpy(), [*core.shape], [0, 1, 2, 3], 100, tol=1e-6, random_state=0)
    assert [tuple(u.shape) for u in factors] == [u.shape for u in others]
    expected = tensorly.tucker_to_tensor((oracle, others))
    # Of the same error; the same tensor, too, where no other one is as near.
    norm = np.linalg.norm(x)
    errors = [np.linalg.norm(x.numpy() - each) for each in (rebuilt(method, x), expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-5 * norm)


def test_tuckers_working_memory_is_in_the_peak_and_its_arithmetic_in_the_operations():
    x = torch.randn(8, 24, 10, 10, generator=torch.Generator().manual_seed(0))
    method = make_method("tucker:ranks=2x3x2x2")
    with measure_memory(nn.Identity(), inputs=(x,)) as memory:
        method.compress(x)
    # The tensor in float64, and its product with the first factor.
    assert memory.peak_bytes > 2 * x.nbytes
    with FlopCounter() as counter:
        method.compress(x)
    # At the very least the Gram matrix of every mode's first factor.
    assert counter.total > sum(2 * x.numel() * size for size in x.shape)


@given(shape=shapes, kind=kinds, seed=seeds, variance=variances)
def test_the_full_svd_finds_what_the_gram_matrix_finds(shape, kind, seed, variance):
    x = tensor(kind, shape, seed)
    gram, svd = (HOSVD(variance=variance, solver=solver) for solver in ("gram", "svd"))
    if gram.compress(x).tensors[0].shape == svd.compress(x).tensors[0].shape:
        assert np.allclose(rebuilt(gram, x), rebuilt(svd, x), atol=1e-7)
    for mode in range(4):
        energy = energies(x.numpy(), mode)
        assert not energy.any() or explains(energy, svd.compress(x).tensors[0].shape[mode], variance)


@given(shape=shapes, kind=kinds, seed=seeds, variance=variances)
def test_with_the_mean_apart_the_rest_is_hosvd_around_it(shape, kind, seed, variance):
    x = tensor(kind, shape, seed)
    mean = x.mean((0, 2, 3), keepdim=True)
    found = rebuilt(HOSVD(variance=variance, mean=True), x)
    assert np.allclose(found, mean.numpy() + rebuilt(HOSVD(variance=variance), x - mean), atol=1e-8)
    assert np.allclose(rebuilt(HOSVD(ranks=(1, 1, 1, 1), mean=True), mean.expand(shape)), mean.expand(shape), atol=1e-12)


@pytest.mark.parametrize(("bits", "allowed"), [(8, 0.03), (4, 0.5)])
@pytest.mark.parametrize("kind", ["gaussian", "decaying", "relu6_like", "constant", "zeros"])
def test_factors_in_few_bits_are_near_those_in_32(kind, bits, allowed):
    x = tensor(kind, (6, 12, 7, 7))
    exact, few = HOSVD(variance=0.9), HOSVD(variance=0.9, bits=bits)
    found, (near, others) = (method.parts(method.compress(x)) for method in (exact, few))
    # The same columns, but for their signs: before they are rounded, each has its largest element above zero.
    core, factors = signed(*found)
    assert all(float((u.amax(0) + u.amin(0)).min()) >= 0 for u in factors.values())
    assert torch.allclose(compose(core, factors), compose(*found))
    for before, after in [(core, near), *((factors[mode], others[mode]) for mode in range(4))]:
        half_a_step = float(before.max() - before.min()) / (2**bits - 1) / 2
        # The least value of a group is rounded to two bytes, which widens its range.
        assert float((after - before).abs().max()) <= half_a_step + 0.02 * float(before.abs().max())
    assert relative_error(few.reconstruct(few.compress(x)), exact.reconstruct(exact.compress(x))) <= allowed


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("sizes", [(1,), (7, 64, 65, 3), (130, 1), (500_000, 77, 1)], ids=str)
def test_tensors_packed_together_are_those_packed_alone(sizes, bits):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    together = BitDepth(bits).unpack(BitDepth(bits).pack(tensors), [x.shape for x in tensors], torch.float32)
    assert stored_bytes(BitDepth(bits).pack(tensors)) == sum(BitDepth(bits).bytes(size, 4) for size in sizes)
    for x, found in zip(tensors, together, strict=True):
        assert torch.equal(found, dequantize(quantize(x, bits, GROUP), bits, GROUP, x.shape, x.dtype))


@given(shape=shapes, patch=st.sampled_from([1, 2, 4, 7]), seed=seeds)
def test_patch_means_are_those_of_a_loop(shape, patch, seed):
    x = tensor("gaussian", shape, seed)
    means, sizes = patch_means(x, patch), patch_sizes(x, patch)
    expected = torch.empty_like(x)
    for top in range(0, shape[2], patch):
        for left in range(0, shape[3], patch):
            block = x[:, :, top : top + patch, left : left + patch]
            expected[:, :, top : top + patch, left : left + patch] = block.mean((2, 3), keepdim=True)
            assert sizes[top // patch, left // patch] == block[0, 0].numel()
    assert torch.allclose(spread(means, patch, x.shape), expected)


@pytest.mark.parametrize("text", ["hosvd", "hosvd:variance=0.8,batch=false", "tucker", "svd", "channel_svd", "asi", "lance"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5, 8), (4, 6, 5, 5)], ids=str)
def test_levels_bound_every_tensor_of_the_shape_and_their_names_read_back(text, shape):
    x, other, fewer = tensor("decaying", shape), tensor("gaussian", shape), tensor("gaussian", (2, *shape[1:]))
    for level in make_method(text).levels(x).values():
        most = level.ceiling.predicted_bytes(x)
        assert make_method(method_name(level)) == level
        assert stored_bytes(level.ceiling.compress(other).tensors) == most
        assert all(stored_bytes(level.compress(y).tensors) <= most for y in (x, other, fewer))


@pytest.mark.parametrize("truncation", ["published", "sequential"])
def test_fewer_examples_never_take_more_bytes_at_the_same_ranks(truncation):
    draw = random.Random(0)
    for _ in range(1500):
        ranks, (channels, height, width) = (tuple(draw.randint(1, 9) for _ in range(count)) for count in (4, 3))
        method = HOSVD(ranks=ranks, truncation=truncation)
        sizes = [method.predicted_bytes((batch, channels, height, width)) for batch in range(1, 13)]
        assert sizes == sorted(sizes), (ranks, channels, height, width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["decaying", "gaussian"])
def test_prediction_with_the_mean_apart_is_exact_in_every_type(kind, dtype):
    # Seeds at which a rank hangs on the last digits of the difference from the mean.
    for seed in (61, 149, 181, 183):
        x, method = tensor(kind, (4, 6, 5, 5), seed).float().to(dtype), HOSVD(variance=0.8, mean=True)
        assert method.predicted_bytes(x) == stored_bytes(method.compress(x).tensors)


@pytest.mark.parametrize("text", ["hosvd:variance=0.9", "tucker:ranks=2x2x2x2", "svd:variance=0.9", "asi:ranks=2x2x2x2"])
def test_a_tensor_of_finite_halves_is_rebuilt_of_finite_halves(text):
    # Its norm, which is the core's largest element, is above 65504.
    x = torch.full((8, 32, 28, 28), 200.0, dtype=torch.float16)
    assert np.allclose(rebuilt(make_method(text), x), 200.0, rtol=0.01)


@pytest.mark.parametrize("text", ["tucker:ranks=2x3x2x2", "hosvd:variance=0.8", "quantize", "asi:variance=0.8"])
def test_no_global_generator_is_touched(text):
    before, python = np.random.get_state()[1].copy(), random.getstate()
    make_method(text).compress(tensor("gaussian", (4, 6, 5, 5)))
    assert np.array_equal(before, np.random.get_state()[1])
    assert python == random.getstate()


def test_ranks_in_a_list_are_ranks():
    method = HOSVD(ranks=[1, 2, 2, 2])
    assert make_method(method_name(method)) == HOSVD(ranks=(1, 2, 2, 2))
