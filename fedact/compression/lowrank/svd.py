"""``svd`` and ``channel_svd``: one unfolding of the activation, truncated."""

from dataclasses import replace
from typing import ClassVar

from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.method import Traits
from fedact.config.spec import settings


@settings("svd")
class SVD(LowRank):
    """Truncated SVD of the batch x rest matrix: a few images, and each example's coefficients.

    variance: the rank is the smallest that explains this share; ranks: a fixed rank; max_ranks: a cap on it.
    """

    name: ClassVar[str] = "svd"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="the SVD baseline of Nguyen et al., NeurIPS 2024, arXiv 2411.06346"
    )

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return (0,)


@settings("channel_svd")
class ChannelSVD(LowRank):
    """Truncated SVD of the positions x channels matrix: fewer channels, and how they mix.

    variance: the rank is the smallest that explains this share; ranks: a fixed rank; max_ranks: a cap on it.
    """

    name: ClassVar[str] = "channel_svd"
    traits: ClassVar[Traits] = replace(DECOMPOSITION, source="Karhunen-Loeve transform over channels")

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return (1 if dimensions == 4 else dimensions - 1,)
