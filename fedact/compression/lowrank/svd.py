"""``svd`` and ``channel_svd``: one unfolding of the activation, truncated."""

from dataclasses import replace
from typing import ClassVar

from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.method import Traits
from fedact.config.spec import settings


@settings("svd")
class SVD(LowRank):
    """Truncated SVD of the batch x rest matrix: a few images, and each example's coefficients.

    Stores a core (k, C, H, W) and a factor (B, k), 4 bytes an element: no matrix of rank k is nearer to the batch's
    unfolding. The SVD baseline of Nguyen et al., NeurIPS 2024, arXiv 2411.06346.

    variance: above 0, at most 1, the share that the rank explains; with neither it nor ranks 0.8. ranks: a fixed rank, from
    1. max_ranks: a cap on the rank that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> METHODS["svd"](ranks=(2,)).predicted_bytes((16, 96, 14, 14))
    150656
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

    Stores a core (B, k, H, W) and a factor (C, k), 4 bytes an element: the Karhunen-Loeve transform over channels (of a
    linear layer's input, over features), with the mean in it.

    variance: above 0, at most 1, the share that the rank explains; with neither it nor ranks 0.8. ranks: a fixed rank, from
    1. max_ranks: a cap on the rank that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> METHODS["channel_svd"](ranks=(12,)).predicted_bytes((16, 96, 14, 14))
    155136
    """

    name: ClassVar[str] = "channel_svd"
    traits: ClassVar[Traits] = replace(DECOMPOSITION, source="Karhunen-Loeve transform over channels")

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return (min(1, dimensions - 1),)
