"""Factors by float32 products and by iteration against numpy's SVD in float64, on easy, flat and treacherous spectra."""

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedact.compression.lowrank import leading_vectors as leading
from fedact.compression.lowrank.algebra import gram, matrix, slabs
from fedact.compression.lowrank.chebyshev import by_filter
from fedact.compression.lowrank.hosvd import HOSVD
from fedact.compression.lowrank.krylov import by_iteration, squared_norm
from fedact.compression.lowrank.leading_vectors import leading_factor
from tests.support.laws import INPUTS
from tests.support.portions import examples

layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
seeds = st.integers(0, 99)
LARGE = [(2, 500, 15, 15), (500, 3, 12, 13), (8, 900, 7, 7), (1, 450, 21, 22)]
"""Unfoldings wide enough for the iteration."""


def with_spectrum(shape: tuple[int, ...], mode: int, values: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A tensor whose unfolding has the given singular values and zeros after them."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((shape[mode], len(values))))[0]
    right = np.linalg.qr(generator.standard_normal((np.prod(shape) // shape[mode], len(values))))[0]
    return torch.from_numpy(tensorly.fold((left * values) @ right.T, mode, shape)).float()


def energies(x: torch.Tensor, mode: int) -> np.ndarray:
    """Return the squared singular values of an unfolding, by numpy."""
    return np.linalg.svd(tensorly.unfold(x.double().numpy(), mode), compute_uv=False) ** 2


def published_rank(energy: np.ndarray, variance: float) -> int:
    return int(np.searchsorted(np.cumsum(energy), variance * energy.sum())) + 1


def assert_leading(
    x: torch.Tensor, mode: int, u: torch.Tensor, energy: np.ndarray | None = None, inaccuracy: float = 1e-3
) -> None:
    """The factor is orthonormal and leaves out no more than the best one of its rank, to a small part of that."""
    assert np.allclose(u.T @ u, np.eye(u.shape[1]), atol=1e-5)
    unfolded, u = tensorly.unfold(x.double().numpy(), mode), u.double().numpy()
    energy = energies(x, mode) if energy is None else energy
    left, least = np.linalg.norm(unfolded - u @ (u.T @ unfolded)) ** 2, energy[u.shape[1] :].sum()
    assert left <= least * (1 + inaccuracy) + 1e-11 * energy.sum()


@layouts
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("decay", [0.5, 1.0, 1.5])
def test_iteration_finds_the_published_rank_and_the_leading_vectors(shape, decay, layout):
    mode = int(np.argmax(shape))
    values = 1.0 + np.arange(min(400, shape[mode], np.prod(shape) // shape[mode]))
    x = with_spectrum(shape, mode, values**-decay).contiguous(memory_format=layout)
    energy = energies(x, mode)
    for variance in (0.3, 0.5, 0.8, 0.9):
        rank = published_rank(energy, variance)
        found = leading_factor(x, mode, shape[mode], variance)
        assert found.shape[1] == rank
        assert_leading(x, mode, found, energy)
        iterated = by_iteration(x, mode, shape[mode], variance, squared_norm(x))
        assert iterated is None or iterated.shape[1] == rank
        capped = leading_factor(x, mode, max(1, rank // 2), variance)
        assert capped.shape[1] == max(1, rank // 2)
        assert_leading(x, mode, capped, energy)


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [96, 150, 300])
def test_the_filter_finds_what_a_full_solver_finds(size, decay):
    x = with_spectrum((4, size, 12, 10), 1, (1.0 + np.arange(size)) ** -decay)
    energy, squared = energies(x, 1), gram(x, 1, torch.float32)
    found = {variance: by_filter(squared / squared.trace(), size, variance) for variance in (0.3, 0.5, 0.8, 0.9)}
    assert decay < 1 or any(u is not None for u in found.values())
    for variance, u in found.items():
        assert u is None or u.shape[1] == published_rank(energy, variance)
        assert u is None or assert_leading(x, 1, u, energy) is None
        assert leading_factor(x, 1, size, variance).shape[1] == published_rank(energy, variance)
    capped = leading_factor(x, 1, 3, 0.9)
    assert capped.shape[1] == min(3, published_rank(energy, 0.9))
    assert_leading(x, 1, capped, energy)


@pytest.mark.parametrize("kind", ["gaussian", "relu6_like", "decaying", "constant"])
def test_ranks_of_a_large_tensor_are_numpys_in_float32(kind):
    x = INPUTS[kind]((4, 420, 11, 10), torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    energy = [energies(x, mode) for mode in range(4)]
    for variance in (0.5, 0.8, 0.95, 0.999, 1.0):
        core, *factors = HOSVD(variance=variance).compress(x).tensors
        for mode in range(4):
            expected = min(x.shape[mode], published_rank(energy[mode], variance)) if variance < 1 else x.shape[mode]
            assert core.shape[mode] == expected
            assert_leading(x, mode, factors[mode], energy[mode])


@layouts
@pytest.mark.parametrize("size", [200, 500])
def test_a_direction_that_few_fibres_show_is_found(size, layout):
    x = torch.zeros(64, size, 7, 7)
    x[:, :5] = torch.randn(64, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    x[33, 190, 5, 5] = 300.0
    found = leading_factor(x.contiguous(memory_format=layout), 1, size, 0.5)
    assert found.shape[1] == published_rank(energies(x, 1), 0.5) == 1
    assert abs(float(found[190])) == pytest.approx(1.0, abs=1e-3)


def test_equal_eigenvalues_at_the_threshold_end_at_the_published_rank():
    x = with_spectrum((4, 420, 11, 10), 1, np.ones(40))
    energy = energies(x, 1)
    for variance in (0.49, 0.51, 0.774):
        assert leading_factor(x, 1, 420, variance).shape[1] == published_rank(energy, variance)


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 70, 3, 3), (2, 500, 16, 16)], ids=str)
def test_a_low_rank_tensor_is_rebuilt_to_rounding_at_its_ranks(shape):
    # The last singular values are lost in a Gram matrix in float32: what is left out says that it is not enough.
    x = with_spectrum(shape, 1, 10.0 ** -np.arange(4))
    method = HOSVD(ranks=(shape[0], 4, *shape[2:]))
    rebuilt = method.reconstruct(method.compress(x))
    assert float((rebuilt - x).norm() / x.norm()) < 1e-6
    assert_leading(x, 1, leading_factor(x, 1, 4, None))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e30])
def test_squares_out_of_float32s_range_are_no_trouble(scale):
    for shape in ((4, 12, 5, 5), (2, 500, 15, 15)):
        x = with_spectrum(shape, 1, 0.7 ** np.arange(12))
        found = leading_factor(x * scale, 1, shape[1], 0.8)
        energy = energies(x, 1)
        assert found.shape[1] == published_rank(energy, 0.8)
        assert_leading(x, 1, found, energy)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(4, 12, 5, 5), (2, 500, 15, 15)], ids=str)
def test_what_is_no_number_has_no_factors(shape, bad):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x[1, 2, 3, 4] = bad
    with pytest.raises(FloatingPointError):
        leading_factor(x, 1, shape[1], 0.8)


def test_a_threshold_within_rounding_is_decided_in_float64(monkeypatch):
    x = with_spectrum((4, 12, 5, 5), 1, np.sqrt([0.5, 0.3 + 1e-7, 0.2 - 1e-7]))
    asked = []
    real = leading.gram_spectrum
    monkeypatch.setattr(leading, "gram_spectrum", lambda *args: asked.append(args[2:]) or real(*args))
    assert leading_factor(x, 1, 12, 0.8).shape[1] == published_rank(energies(x, 1), 0.8)
    assert asked == [()]
    assert leading_factor(x, 1, 12, 0.75).shape[1] == 2
    assert asked == [()]


@layouts
@given(shape=st.tuples(*[st.integers(1, 6)] * 4), seed=seeds)
@examples(80)
def test_slabs_matrices_and_grams_are_those_of_the_unfolding(layout, shape, seed):
    x = INPUTS["gaussian"](shape, torch.Generator().manual_seed(seed)).contiguous(memory_format=layout)
    for mode in range(4):
        unfolded = tensorly.unfold(x.double().numpy(), mode)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
            assert np.allclose(gram(x, mode, dtype).numpy(), unfolded @ unfolded.T, atol=tolerance)
        assert slabs(x, mode).data_ptr() == x.data_ptr()
        columns = matrix(x, mode).double().numpy()
        assert np.allclose(sorted(columns.T.tolist()), sorted(unfolded.T.tolist()))
    assert squared_norm(x) == pytest.approx(float(x.double().square().sum()), rel=1e-6)
