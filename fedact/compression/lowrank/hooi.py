"""``tucker``: the best factors at given ranks, by iteration; slow, the baseline of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from fedact.compression.lowrank.algebra import factor, gram_spectrum, project
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.lowrank.eigensolver import finite
from fedact.compression.lowrank.factorization import Factorization, Factors
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.method import State, Sweep, Traits
from fedact.config.spec import settings

ITERATIONS, TOLERANCE = 100, 1e-6


@dataclass(frozen=True)
class HOOI(Factorization):
    """Higher-order orthogonal iteration in float64, until the relative error changes by less than 1e-6, or 100 times."""

    constant_ranks: ClassVar[bool] = True

    def feasible(self, ranks: dict[int, int], shape: Sequence[int]) -> dict[int, int]:
        # No tensor has a core with one rank above the product of the others.
        largest = max(ranks, key=lambda mode: ranks[mode])
        return ranks | {largest: min(ranks[largest], prod(rank for mode, rank in ranks.items() if mode != largest))}

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        ranks, double = self.ranks(x, rule), finite(x).detach().double()
        factors = {mode: factor(double, mode, gram_spectrum(double, mode), rank) for mode, rank in ranks.items()}
        norm = torch.linalg.vector_norm(double)
        errors: list[float] = []
        for _ in range(ITERATIONS):
            for mode, rank in ranks.items():
                projected = project(double, {other: u for other, u in factors.items() if other != mode})
                factors[mode] = factor(projected, mode, gram_spectrum(projected, mode), rank)
                del projected
            # Orthonormal factors leave the norm as it is.
            core_norm = torch.linalg.vector_norm(project(double, factors))
            errors.append(float((norm.square() - core_norm.square()).abs().sqrt() / norm))
            # Not below the tolerance: the error of a tensor of zeros is no number.
            if len(errors) > 2 and not abs(errors[-2] - errors[-1]) >= TOLERANCE:
                break
        del double
        factors = {mode: u.to(x) for mode, u in factors.items()}
        return project(x, factors), factors


@settings("tucker")
class Tucker(LowRank):
    """Higher-order orthogonal iteration, to convergence: the smallest error at given ranks.

    Stores a core and factors as ``hosvd``. From HOSVD on, each factor in turn becomes the leading left singular vectors of
    the tensor projected on all other factors, until the error hardly changes: never worse than HOSVD, and slow. The baseline
    of the decompositions. De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21(4), 2000; equal to tensorly's
    ``partial_tucker``, which computes in numpy, where no ledger sees its memory.

    variance: above 0, at most 1; the ranks are those of published HOSVD, or of a plan's; with neither it nor ranks 0.8.
    ranks: fixed ones, whole numbers from 1, one a mode. max_ranks: caps on the ranks that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> METHODS["tucker"](ranks=(4, 40, 5, 5)).predicted_bytes((16, 96, 14, 14))
    32176
    """

    name: ClassVar[str] = "tucker"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="De Lathauwer et al., 2000, HOOI", sweep=Sweep("variance", (0.8,))
    )

    @property
    def factorization(self) -> Factorization:
        return HOOI()
