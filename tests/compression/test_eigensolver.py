"""Matrices that solvers have trouble with: repeated eigenvalues, zeros, rank one, squares out of float32's range."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedact.compression import make_method
from fedact.compression.lowrank.chebyshev import by_filter
from fedact.compression.lowrank.eigensolver import eigenpairs
from fedact.compression.lowrank.leading_vectors import leading_factor

SHAPES = [(4, 6, 5, 5), (3, 130, 9, 9), (130, 200)]
"""Those of a full solver; wide enough for the filter; a linear layer's input."""
SCALES = [1e-30, 1e-3, 1.0, 1e30]
METHODS = [
    "hosvd:variance=0.9", "hosvd:variance=0.9,truncation=sequential", "hosvd:variance=0.9,solver=svd", "svd:variance=0.9",
    "channel_svd:variance=0.9", "asi:variance=0.9", "lance:variance=0.9", "tucker:variance=0.9",
]  # fmt: skip


def outer(shape: tuple[int, ...]) -> Tensor:
    """A tensor of rank one."""
    generator, x = torch.Generator().manual_seed(0), torch.ones(())
    for size in shape:
        x = x[..., None] * torch.randn(size, generator=generator)
    return x


def repeated(shape: tuple[int, ...]) -> Tensor:
    """A tensor whose second unfolding has equal singular values."""
    rows, columns = shape[1], int(np.prod(shape)) // shape[1]
    noise = np.random.default_rng(0).standard_normal((max(rows, columns), min(rows, columns)))
    unfolded = np.linalg.qr(noise)[0] * np.sqrt(noise.size)
    unfolded = unfolded if rows > columns else unfolded.T
    return torch.from_numpy(unfolded.reshape(rows, shape[0], *shape[2:])).movedim(0, 1).float().contiguous()


def one_element(shape: tuple[int, ...]) -> Tensor:
    x = torch.zeros(shape)
    x.view(-1)[x.numel() // 2] = 1.0
    return x


def noisy(shape: tuple[int, ...]) -> Tensor:
    return outer(shape) + 1e-6 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


TENSORS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "zeros": torch.zeros, "constant": torch.ones, "rank one": outer, "nearly rank one": noisy, "one element": one_element,
    "repeated": repeated,
}  # fmt: skip
MATRICES = [torch.zeros(20, 20), torch.eye(20), torch.ones(20, 20), outer((20,))[:, None] * outer((20,))]
MATRICES += [x.view(x.shape[0], -1) @ x.view(x.shape[0], -1).T for x in (repeated((5, 3, 4)), noisy((20, 30)))]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("kind", TENSORS)
def test_every_finite_tensor_is_decomposed_within_the_methods_bound(kind, text, scale):
    for shape in SHAPES:
        x, method = TENSORS[kind](shape) * scale, make_method(text).for_dimensions(len(shape))
        first = method.compress(x)
        for compressed in (first, method.compress(x, first.state)):
            error = (method.reconstruct(compressed).double() - x.double()).norm()
            # A tenth of the variance a mode, or rounding: more of it in a float32 SVD of rows of 10,000 elements.
            rounding = 1e-4 if "solver=svd" in text else 1e-5
            left_out = (len(shape) * 0.1) ** 0.5 if kind == "repeated" else rounding
            assert error <= left_out * x.double().norm()


def failing(monkeypatch, name: str, types: tuple[torch.dtype, ...]) -> None:
    real = getattr(torch.linalg, name)

    def solver(x: Tensor, **settings):
        if x.dtype in types:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return real(x, **settings)

    monkeypatch.setattr(torch.linalg, name, solver)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("types", [(), (torch.float32,), (torch.float32, torch.float64)], ids=str)
def test_a_solver_that_fails_is_followed_by_another(types, scale, monkeypatch):
    failing(monkeypatch, "eigh", types)
    for symmetric in MATRICES:
        values, vectors = (found.double() for found in eigenpairs(symmetric * scale))
        assert torch.allclose(vectors.T @ vectors, torch.eye(len(vectors)).double(), atol=1e-5)
        assert torch.equal(values, values.sort()[0])
        assert torch.allclose((vectors * (values / scale)) @ vectors.T, symmetric.double(), atol=1e-4)


@pytest.mark.parametrize("text", METHODS)
@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_methods_find_the_same_where_a_solver_fails(text, name, monkeypatch):
    x, method = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)), make_method(text)
    expected = method.reconstruct(method.compress(x))
    failing(monkeypatch, name, (torch.float32, torch.float64))
    assert torch.allclose(method.reconstruct(method.compress(x)), expected, atol=1e-4)


@pytest.mark.parametrize("size", [16, 40])
def test_what_is_no_number_is_said_to_be_none(size, monkeypatch):
    failing(monkeypatch, "eigh", (torch.float32, torch.float64))
    with pytest.raises(FloatingPointError, match="NaN or an infinity"):
        eigenpairs(torch.full((size, size), torch.nan))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("text", METHODS)
def test_a_step_on_what_is_no_number_fails_clearly(text, bad):
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        x.view(-1)[x.numel() // 2] = bad
        with pytest.raises(FloatingPointError, match="NaN or an infinity"):
            make_method(text).for_dimensions(len(shape)).compress(x)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.999])
def test_the_filter_stays_within_float32s_range(variance):
    for kind in ("constant", "rank one", "nearly rank one", "one element"):
        x = TENSORS[kind]((130, 200))
        squared = x @ x.T
        found = by_filter(squared / squared.trace(), 130, variance)
        assert found is None or found.isfinite().all()
        u = leading_factor(x, 0, 130, variance)
        assert u.shape == (130, 1)
        assert (u @ (u.T @ x) - x).norm() <= 1e-5 * x.norm()
