"""Tensor algebra in PyTorch: unfoldings, spectra, truncation and mode products."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.eigensolver import eigenpairs, finite
from fedact.compression.method import computable


class Spectrum(NamedTuple):
    """One mode's eigenvalues (the squared singular values of the unfolding, descending) with eigenvectors.

    Where the unfolding is narrower than it is tall, the vectors are those of the smaller Gram matrix.
    """

    eigenvalues: Float[Tensor, " rank"]
    vectors: Float[Tensor, "side rank"]
    tall: bool


SMALL = 64
"""The dimension up to which a Gram matrix takes no longer than products with a thin matrix."""
FEW = 16
"""Products at every position up to which two modes together take no longer than one after the other."""
COPIED = 2**20
"""Elements that are copied at a time where a product is taken in another type."""


def unfold(x: Tensor, mode: int) -> Float[Tensor, "dimension rest"]:
    """Return the mode-n unfolding: dimension n against all the others in their order."""
    return x.movedim(mode, 0).reshape(x.shape[mode], -1)


def memory_order(x: Tensor) -> list[int]:
    """Return x's dimensions from the outermost in memory to the innermost."""
    if x.is_contiguous():
        return list(range(x.dim()))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return [0, 2, 3, 1]
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda dimension: -strides[dimension])


def slabs(x: Tensor, mode: int) -> Float[Tensor, "outer dimension inner"]:
    """Return x with dimension n between those outside and those inside of it in memory: a view, unless x has gaps."""
    order = memory_order(x)
    place = order.index(mode)
    sizes = [x.shape[dimension] for dimension in order]
    return x.permute(order).contiguous().view(prod(sizes[:place]), sizes[place], prod(sizes[place + 1 :]))


def matrix(x: Tensor, mode: int) -> Float[Tensor, "dimension rest"]:
    """Return an unfolding with the other dimensions in memory's order where that needs no copy: the same singular values."""
    parts = slabs(x, mode)
    if parts.shape[2] == 1:
        return parts[..., 0].T
    return parts[0] if len(parts) == 1 else unfold(x, mode)


def gram(x: Tensor, mode: int, dtype: torch.dtype) -> Float[Tensor, "dimension dimension"]:
    """Return the unfolding times its transpose, multiplied and added up in this type."""
    parts = slabs(x, mode)
    outer, dimension, inner = parts.shape
    if 1 < inner < dimension and outer > 1:
        parts = unfold(x, mode)[None]
    # A part at a time: a copy of the whole, or the products of all parts, could be the largest tensor of the step.
    if x.numel() <= COPIED or (dtype is x.dtype and 1 in (len(parts), parts.shape[2])):
        return _gram(parts.to(dtype))
    along = 0 if len(parts) > 1 else 2
    step = max(1, COPIED * parts.shape[along] // max(1, x.numel()))
    grams = (_gram(part.to(dtype)) for part in torch.split(parts, step, along))
    return reduce(torch.Tensor.add_, grams)


def _gram(parts: Float[Tensor, "outer dimension inner"]) -> Float[Tensor, "dimension dimension"]:
    if parts.shape[2] == 1:
        rows = parts[..., 0]
        return rows.T @ rows
    if len(parts) == 1:
        rows = parts[0]
        return rows @ rows.T
    return torch.bmm(parts, parts.transpose(1, 2)).sum(0)


def times_gram(x: Tensor, block: Float[Tensor, "dimension columns"], mode: int) -> Float[Tensor, "dimension columns"]:
    """Return the unfolding times its transpose times a block of thin columns."""
    parts = slabs(x, mode)
    if parts.shape[1] <= SMALL and block.shape[1] > 2:
        return gram(x, mode, x.dtype) @ block
    # The thin matrix on the left, its rows whole in memory: MKL takes several times as long for any other order.
    thin = block.T.contiguous()
    if parts.shape[2] == 1:
        rows = parts[..., 0]
        return ((thin @ rows.T) @ rows).T
    inner, across = torch.bmm(thin.expand(len(parts), *thin.shape), parts), parts.transpose(1, 2)
    if len(thin) <= 2:
        return torch.bmm(inner, across).sum(0).T
    return torch.addbmm(parts.new_zeros(()), inner, across, beta=0).T


def is_tall(x: Tensor, mode: int) -> bool:
    """Tell whether an unfolding's dimension is larger than all the others together."""
    return x.shape[mode] ** 2 > x.numel()


def gram_spectrum(x: Tensor, mode: int, dtype: torch.dtype = torch.float64) -> Spectrum:
    """Return the spectrum of an unfolding from the Gram matrix of its smaller side, in float64 unless told otherwise.

    A Gram matrix squares the condition number, hence float64; eigenvalues below zero are rounding and become zero.
    Raises FloatingPointError where x holds a NaN or an infinity (or is out of the range of a smaller type).
    """
    tall = is_tall(x, mode)
    squared = gram(matrix(x, mode), 1, dtype) if tall else gram(x, mode, dtype)
    # What is no number in a row is none in that row's sum of squares.
    finite(squared.trace())
    eigenvalues, vectors = eigenpairs(squared)
    return Spectrum(eigenvalues.double().flip(0).clamp_min(0), vectors.flip(1), tall)


def svd_spectrum(x: Tensor, mode: int) -> Spectrum:
    """Return the spectrum of an unfolding from its full SVD, as the papers do; from its Gram matrix where that fails.

    Raises FloatingPointError as above.
    """
    try:
        vectors, singular_values, _ = torch.linalg.svd(finite(unfold(x, mode)), full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return gram_spectrum(x, mode)
    return Spectrum(singular_values.double().square(), vectors, tall=False)


SOLVERS: dict[str, Callable[[Tensor, int], Spectrum]] = {"gram": gram_spectrum, "svd": svd_spectrum}


def factor(x: Tensor, mode: int, spectrum: Spectrum, rank: int) -> Float[Tensor, "dimension rank"]:
    """Return the leading left singular vectors of an unfolding, orthonormal, in x's type and a storage of their own."""
    vectors = spectrum.vectors[:, :rank]
    if spectrum.tall:
        # Through the smaller side small singular vectors lose their orthogonality: QR gives it back.
        vectors = torch.linalg.qr(matrix(x, mode).double() @ vectors.double()).Q
    return vectors.to(x.dtype).clone(memory_format=torch.contiguous_format)


def rank_for_variance(eigenvalues: Float[Tensor, " rank"], variance: float) -> int:
    """Return the smallest rank whose leading eigenvalues reach the explained variance; 1.0 is the full rank."""
    if variance >= 1.0:
        return len(eigenvalues)
    explained = eigenvalues.cumsum(0)
    return min(int(torch.searchsorted(explained, variance * explained[-1])) + 1, len(eigenvalues))


def mode_products(x: Tensor, matrices: Iterable[tuple[int, Float[Tensor, "rows columns"]]]) -> Tensor:
    """Return x times one matrix after the other, each along its mode: dimension n goes from columns to rows.

    Memory keeps its order, but where the innermost dimension shrinks, which is then the outermost.
    """
    order = memory_order(x)
    sizes = [x.shape[dimension] for dimension in order]
    x = x.permute(order).contiguous()
    for mode, matrix in matrices:
        place, rows = order.index(mode), matrix.shape[0]
        outer, size, inner = prod(sizes[:place]), sizes[place], prod(sizes[place + 1 :])
        sizes[place] = rows
        if inner > 1 and outer > 1:
            x = torch.bmm(matrix.expand(outer, rows, size), x.view(outer, size, inner))
        elif inner > 1:
            x = matrix @ x.view(size, inner)
        elif rows >= size:
            x = x.view(outer, size) @ matrix.T
        else:
            # As in ``times_gram``.
            x = matrix.contiguous() @ x.view(outer, size).T
            order.insert(0, order.pop(place))
            sizes.insert(0, sizes.pop(place))
    return x.view(sizes).permute([order.index(dimension) for dimension in range(len(order))])


def mode_product(x: Tensor, matrix: Float[Tensor, "rows columns"], mode: int) -> Tensor:
    """Return x times a matrix along one mode."""
    return mode_products(x, [(mode, matrix)])


def project(x: Tensor, factors: Mapping[int, Tensor], caps: Mapping[int, int] | None = None) -> Tensor:
    """Return the core x x1 U1^T x2 U2^T ... (in the order of the fewest products); a mode without a factor stays whole.

    caps: the most that the ranks can be, where they depend on the data: the way is then the one for those, so that what is
    made on it is never more than with them.
    """
    ranks = {mode: (caps or {}).get(mode, factor.shape[1]) for mode, factor in factors.items()}
    if x.dim() == 4 and {2, 3} <= factors.keys() and ranks[2] * ranks[3] <= FEW:
        # Height and width at once: a few weighted means over the positions, in one pass.
        both = (factors[2][:, None, :, None] * factors[3][:, None]).reshape(x.shape[2] * x.shape[3], -1)
        rest = {mode: factor for mode, factor in factors.items() if mode < 2}
        core = project(x.flatten(2), {**rest, 2: both}, {**ranks, 2: ranks[2] * ranks[3]})
        return core.reshape(*core.shape[:2], factors[2].shape[1], factors[3].shape[1])
    modes = sorted(factors, key=lambda mode: 1 / factors[mode].shape[0] - 1 / ranks[mode])
    return mode_products(x, [(mode, factors[mode].T) for mode in modes])


def compose(core: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Return core x1 U1 x2 U2 ... (the smallest growth first, which keeps the intermediate results small)."""
    modes = sorted(factors, key=lambda mode: factors[mode].shape[0] / factors[mode].shape[1])
    return mode_products(core, [(mode, factors[mode]) for mode in modes])


def full_ranks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the largest rank that each unfolding of the shape can have."""
    total = prod(shape)
    return tuple(min(size, total // size) for size in shape)


def channel_mean(x: Tensor) -> Tensor:
    """Return every channel's mean over the batch and the positions, with x's number of dimensions and in x's type."""
    others = [dimension for dimension in range(x.dim()) if dimension != 1]
    return computable(x).mean(others, keepdim=True).to(x.dtype) if x.dim() > 1 else x.clone()
