"""``tucker``: the best factors at given ranks, by tensorly; slow, the baseline of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedact.compression.lowrank.algebra import finite, project
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.lowrank.factorization import Factorization, Factors
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.method import State, Sweep, Traits
from fedact.config.spec import settings

ITERATIONS, TOLERANCE = 100, 1e-6


@dataclass(frozen=True)
class HOOI(Factorization):
    """Higher-order orthogonal iteration by tensorly, to a relative change of the error of 1e-6 or 100 iterations."""

    constant_ranks: ClassVar[bool] = True

    def feasible(self, ranks: dict[int, int], shape: Sequence[int]) -> dict[int, int]:
        # No tensor has a core with one rank above the product of the others.
        largest = max(ranks, key=lambda mode: ranks[mode])
        return ranks | {largest: min(ranks[largest], prod(rank for mode, rank in ranks.items() if mode != largest))}

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        # The import takes as long as a small round.
        from tensorly.decomposition import partial_tucker

        ranks = self.ranks(x, rule)
        array = finite(x).detach().cpu().double().numpy()
        # A tensor of zeros has no relative error to converge.
        with np.errstate(invalid="ignore", divide="ignore"):
            (_, arrays), _ = partial_tucker(array, [*ranks.values()], [*ranks], ITERATIONS, tol=TOLERANCE, random_state=0)
        factors = {mode: torch.from_numpy(np.ascontiguousarray(u)).to(x) for mode, u in zip(ranks, arrays, strict=True)}
        return project(x, factors), factors


@settings("tucker")
class Tucker(LowRank):
    """Higher-order orthogonal iteration (tensorly's), to convergence: the smallest error at given ranks.

    Stores a core and factors as ``hosvd``. From HOSVD on, each factor in turn becomes the leading left singular vectors of
    the tensor projected on all other factors, until the error hardly changes: never worse than HOSVD, and slow. The baseline
    of the decompositions. De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21(4), 2000; tensorly's ``partial_tucker``.

    variance: above 0, at most 1; the ranks are those of published HOSVD, or of a plan's; with neither it nor ranks 0.8.
    ranks: fixed ones, whole numbers from 1, one a mode. max_ranks: caps on the ranks that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> METHODS["tucker"](ranks=(4, 40, 5, 5)).predicted_bytes((16, 96, 14, 14))
    32176
    """

    name: ClassVar[str] = "tucker"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="De Lathauwer et al., 2000, HOOI; tensorly's partial_tucker", sweep=Sweep("variance", (0.8,))
    )

    @property
    def factorization(self) -> Factorization:
        return HOOI()
