"""numpy's SVD and tensorly are the oracles: they share no code with fedact."""

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tensorly.decomposition import tucker as tensorly_tucker

from fedact.compression.lowrank.algebra import compose, factor, gram_spectrum, mode_product, rank_for_variance, unfold
from fedact.compression.lowrank.hosvd import HOSVD
from tests.support.laws import INPUTS
from tests.support.portions import examples

shapes = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))
kinds = st.sampled_from(sorted(INPUTS))


def tensor(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return INPUTS[kind](shape, torch.Generator().manual_seed(seed))


@given(shapes, kinds, st.integers(0, 99))
def test_unfolding_and_mode_product_are_tensorlys(shape, kind, seed):
    x = tensor(kind, shape, seed)
    for mode in range(4):
        matrix = torch.randn(3, shape[mode], generator=torch.Generator().manual_seed(seed))
        assert np.array_equal(unfold(x, mode).numpy(), tensorly.unfold(x.numpy(), mode))
        expected = tensorly.tenalg.mode_dot(x.numpy(), matrix.numpy(), mode)
        assert np.allclose(mode_product(x, matrix, mode).numpy(), expected, atol=1e-4)


@given(shapes, kinds, st.integers(0, 99))
def test_spectra_are_the_squared_singular_values_of_each_unfolding(shape, kind, seed):
    x = tensor(kind, shape, seed)
    for mode in range(4):
        singular = np.linalg.svd(tensorly.unfold(x.double().numpy(), mode), compute_uv=False)
        found = gram_spectrum(x, mode).eigenvalues.numpy()
        assert np.allclose(found, singular**2, atol=1e-9 * max(1.0, singular[0] ** 2))


@given(shapes, st.sampled_from(["gaussian", "decaying", "relu6_like"]), st.integers(0, 99), st.floats(0.1, 0.999))
@examples(200)
def test_published_ranks_are_those_of_numpys_svd_of_each_unfolding(shape, kind, seed, variance):
    x = tensor(kind, shape, seed)
    assume(bool(x.any()))
    core = HOSVD(variance=variance).compress(x.double()).tensors[0]
    for mode in range(4):
        energy = np.linalg.svd(tensorly.unfold(x.double().numpy(), mode), compute_uv=False) ** 2
        explained = np.cumsum(energy) / energy.sum()
        rank = core.shape[mode]
        assert explained[rank - 1] >= variance - 1e-9
        assert rank == 1 or explained[rank - 2] < variance + 1e-9


@given(shapes, kinds, st.integers(0, 99), st.tuples(*[st.integers(1, 6)] * 4))
def test_factors_are_orthonormal_and_rebuild_the_projection(shape, kind, seed, ranks):
    x = tensor(kind, shape, seed).double()
    core, *factors = HOSVD(ranks=ranks).compress(x).tensors
    for u in factors:
        assert torch.allclose(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype), atol=1e-9)
    projected = x.numpy()
    for mode, u in enumerate(factors):
        projected = tensorly.tenalg.mode_dot(projected, (u @ u.T).numpy(), mode)
    assert np.allclose(compose(core, dict(enumerate(factors))).numpy(), projected, atol=1e-8)


def test_hosvd_is_within_its_bound_of_tensorlys_hooi():
    # Truncated HOSVD is quasi-optimal: at most sqrt(modes) times the best error, of which HOOI is a local optimum.
    x = INPUTS["relu6_like"]((6, 10, 7, 7), torch.Generator().manual_seed(1)).double()
    ranks = (3, 4, 3, 3)
    method = HOSVD(ranks=ranks)
    ours = float((x - method.reconstruct(method.compress(x))).norm())
    best = tensorly.tucker_to_tensor(tensorly_tucker(x.numpy(), rank=ranks, n_iter_max=200, tol=1e-10))
    hooi = float(np.linalg.norm(x.numpy() - best))
    assert hooi <= ours * (1 + 1e-9)
    assert ours <= 2 * hooi


def test_variance_is_explained_variance_of_each_mode():
    eigenvalues = torch.tensor([6.0, 3.0, 1.0])
    assert [rank_for_variance(eigenvalues, v) for v in (0.5, 0.6, 0.61, 0.9, 0.91, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for_variance(torch.zeros(3), 0.8) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_are_added_up_in_float64_whatever_the_gram_matrix_was_made_in(dtype):
    # 2^24 and many ones: their sum in float32 stays 2^24.
    x = torch.diag(torch.tensor([2.0**12, *[1.0] * 63]))
    eigenvalues = gram_spectrum(x, 0, dtype).eigenvalues
    assert eigenvalues.sum() == 2.0**24 + 63
    assert rank_for_variance(eigenvalues, (2.0**24 + 30.5) / (2.0**24 + 63)) == 32


@pytest.mark.parametrize("shape", [(40, 3), (3, 40)])
def test_factor_of_either_side_spans_the_leading_singular_subspace(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    left = np.linalg.svd(x.numpy())[0][:, :2]
    u = factor(x, 0, gram_spectrum(x, 0), 2).numpy()
    assert np.allclose(u @ u.T, left @ left.T, atol=1e-10)
