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

    variance: ranks are, per mode, the smallest that explain this share of the full tensor's variance (as published);
    ranks: fixed ranks such as 4x40x5x5 instead, one a mode; max_ranks: caps on the ranks that a variance asks for.
    With neither variance nor ranks a plan's budget chooses the ranks; where nothing does, the variance is the paper's 0.8.
    truncation: sequential takes each mode's spectrum from what the modes before it left, the smallest mode first and the
    batch last (cheaper, at lower ranks). bits: of the core's and the factors' elements, in groups of 64 with a scale.
    solver: svd is the papers' full SVD of every unfolding. batch: false leaves the batch whole. mean: true keeps every
    channel's mean apart, exactly, and explains the variance around it. Ranks for another number of dimensions leave a
    tensor exact.
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
