"""``hosvd``: a core and one factor a mode, as in the paper, and the ways in which it can be had better."""

from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LEVELS, PAPER_VARIANCE, LowRank
from fedact.compression.lowrank.factorization import Factorization, HigherOrderSVD, SequentialHOSVD
from fedact.compression.method import Method, Traits
from fedact.config.spec import settings


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
    first and the batch last (ST-HOSVD: cheaper, at lower ranks). bits: 32 (default), 8 or 4, of an element of core and
    factors, in groups of 64 with a scale. solver: gram (default), or svd, the paper's full SVD of every unfolding. batch:
    false does not truncate the batch. mean: true stores every channel's mean apart, exactly, and explains the variance
    around it.

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
    bits: Literal[32, 8, 4] = 32
    solver: Literal["gram", "svd"] = "gram"
    batch: bool = True
    mean: bool = False

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(0 if self.batch else 1, dimensions))

    @property
    def factorization(self) -> Factorization:
        return SequentialHOSVD(self.solver) if self.truncation == "sequential" else HigherOrderSVD(self.solver)

    @property
    def has_free_settings(self) -> bool:
        return self.ranks is None and self.variance is None

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return fixed ranks (caps, where a variance is given) at each explained variance; exact where that is smaller."""
        if not self.has_free_settings:
            return super().levels(x)
        exact = Exact()
        ranks = self.ranks_at(x, [level for level in LEVELS if level >= PAPER_VARIANCE])
        fixed = {level: self.with_ranks(each) for level, each in ranks.items()}
        most = exact.predicted_bytes(x)
        return {level: method if method.predicted_bytes(x) < most else exact for level, method in fixed.items()}
