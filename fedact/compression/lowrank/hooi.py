"""``tucker``: the best factors at given ranks, by tensorly; slow, the yardstick of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedact.compression.lowrank.algebra import finite, project
from fedact.compression.lowrank.truncated import DECOMPOSITION, Factors, Truncated
from fedact.compression.method import State, Sweep, Traits

ITERATIONS, TOLERANCE = 100, 1e-6


@dataclass(frozen=True)
class Tucker(Truncated):
    """Higher-order orthogonal iteration (tensorly's), to convergence: the smallest error at given ranks.

    variance: the ranks are those of published HOSVD, or of a plan's; ranks: given ones, one a mode; max_ranks: caps.
    """

    name: ClassVar[str] = "tucker"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="De Lathauwer et al., 2000, HOOI; tensorly's partial_tucker", sweep=Sweep("variance", (0.8,))
    )
    fixed_by_a_plan: ClassVar[bool] = True

    def clip(self, ranks: Sequence[int] | None, shape: Sequence[int]) -> dict[int, int]:
        # No tensor has a core with one rank above the product of the others.
        clipped = super().clip(ranks, shape)
        largest = max(clipped, key=lambda mode: clipped[mode])
        return clipped | {largest: min(clipped[largest], prod(rank for mode, rank in clipped.items() if mode != largest))}

    def decompose(self, x: Tensor, state: State) -> tuple[Tensor, Factors]:
        # The import takes as long as a small round.
        from tensorly.decomposition import partial_tucker

        ranks = self.ranks_of(x)
        array = finite(x).detach().cpu().double().numpy()
        # A tensor of zeros has no relative error to converge.
        with np.errstate(invalid="ignore", divide="ignore"):
            (_, found), _ = partial_tucker(array, [*ranks.values()], [*ranks], ITERATIONS, tol=TOLERANCE, random_state=0)
        factors = {mode: torch.from_numpy(np.ascontiguousarray(u)).to(x) for mode, u in zip(ranks, found, strict=True)}
        return project(x, factors), factors
