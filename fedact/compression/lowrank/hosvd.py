"""``hosvd``: a core and one factor a mode, as in the paper, and the ways in which it can be had better."""

from bisect import bisect_left
from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from fedact.compression.lowrank.bit_depth import BitDepth
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.lowrank.factorization import Factorization, HigherOrderSVD, SequentialHOSVD
from fedact.compression.lowrank.nested import Spectra
from fedact.compression.method import Method, Traits
from fedact.config.spec import settings

FREE_LEVELS = (1.0, 0.99, 0.97, 0.92, 0.8, 0.6, 0.4)
"""Explained variances between which a budget chooses where no setting says it."""
STEPS_A_DECADE, DECADES = 20, 7
"""Of the share of the variance left out, in which the least is looked for whose factors are smaller than the tensor."""


@settings("hosvd")
class HOSVD(LowRank):
    """Truncated HOSVD of the whole batch.

    Stores a core S (k1, k2, k3, k4) and orthonormal factors U1 (B, k1), U2 (C, k2), U3 (H, k3), U4 (W, k4), 4 bytes an
    element: x ~ S x1 U1 x2 U2 x3 U3 x4 U4. Un holds the leading left singular vectors of the mode-n unfolding of the full
    tensor; kn is the smallest rank whose squared singular values reach the share ``variance`` of their sum. The error is at
    most sqrt(modes) times the least possible at these ranks. The weight gradient comes from core and factors (the paper's
    equation) where that is cheaper than from the rebuilt tensor. Raises FloatingPointError for a NaN or an infinity.
    Nguyen et al., NeurIPS 2024, arXiv 2411.06346, sections 3.2-3.3; De Lathauwer et al., SIAM J. Matrix Anal. Appl., 2000.

    variance: above 0, at most 1. ranks: fixed, such as 4x40x5x5, whole numbers from 1, one a mode; not with a variance.
    With neither a plan's budget chooses the ranks; where there is none, the variance is the paper's 0.8. Ranks for another
    number of dimensions leave a tensor exact. max_ranks: caps on the ranks that a variance asks for.
    truncation: published, or sequential: each mode's spectrum from the core that the modes before it left, the smallest mode
    first and the batch last (ST-HOSVD: cheaper, at lower ranks). bits: 32, 8 or 4, of an element of core and
    factors, 8 and 4 in groups of 64 with a scale; not given, a budget that chooses ranks chooses 32 or 8, and it is 32
    otherwise. solver: gram (default), or svd, the paper's full SVD of every unfolding. batch: false does not truncate the
    batch. mean: true stores every channel's mean apart, exactly, and explains the variance around it.

    >>> import torch
    >>> from fedact.compression import METHODS
    >>> ramp = torch.linspace(0, 1, 8)
    >>> x = torch.outer(ramp, ramp).expand(4, 6, 8, 8)
    >>> codec = METHODS["hosvd"](variance=0.8)
    >>> compressed = codec.compress(x)
    >>> [tuple(part.shape) for part in compressed.tensors]
    [(1, 1, 1, 1), (4, 1), (6, 1), (8, 1), (8, 1)]
    >>> codec.predicted_bytes(x), 4 * x.numel()
    (108, 6144)
    >>> bool((codec.reconstruct(compressed) - x).norm() < 1e-5 * x.norm())
    True
    """

    name: ClassVar[str] = "hosvd"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="Nguyen et al., NeurIPS 2024, arXiv 2411.06346, sections 3.2-3.3", variants=("", "bits=8")
    )

    truncation: Literal["published", "sequential"] = "published"
    bits: Literal[32, 8, 4] | None = None
    solver: Literal["gram", "svd"] = "gram"
    batch: bool = True
    mean: bool = False

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(0 if self.batch else 1, dimensions))

    @property
    def factorization(self) -> Factorization:
        return SequentialHOSVD(self.solver) if self.truncation == "sequential" else HigherOrderSVD(self.solver)

    @property
    def bit_depth(self) -> BitDepth:
        return BitDepth(self.bits or 32)

    @property
    def has_free_settings(self) -> bool:
        return self.ranks is None and self.variance is None

    @property
    def alternatives(self) -> list[Method]:
        return [self, replace(self, bits=8)] if self.has_free_settings and self.bits is None else [self]

    def levels(self, x: Tensor, spectra: Spectra | None = None) -> dict[float, Method]:
        """Return fixed ranks (caps, where a variance is given) at each explained variance.

        Free ranks explain no more than those whose factors are smaller than the tensor; where none are, one in each mode.
        """
        if not self.has_free_settings:
            return super().levels(x, spectra)
        ranks = self.ranks_by_variance(x, spectra)
        left_out = [10 ** (-place / STEPS_A_DECADE) for place in range(STEPS_A_DECADE * DECADES + 1)]

        def fixed(place: int) -> Method:
            return self.with_ranks(ranks(1 - left_out[place]))

        # The methods at rising places are ever larger.
        end = bisect_left(range(len(left_out)), True, key=lambda place: fixed(place).predicted_bytes(x) >= x.nbytes)
        most = 1.0 if self.with_ranks(ranks(1.0)).predicted_bytes(x) < x.nbytes else 1 - left_out[max(0, end - 1)]
        return {level: self.with_ranks(ranks(min(level, most))) for level in FREE_LEVELS}

    def between(self, other: Method, share: float) -> Method | None:
        if not (isinstance(other, HOSVD) and self.ranks and other.ranks):
            return None
        ranks = tuple(round(one ** (1 - share) * two**share) for one, two in zip(self.ranks, other.ranks, strict=True))
        return self.with_ranks(ranks) if ranks not in (self.ranks, other.ranks) else None
