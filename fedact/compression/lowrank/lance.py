"""``lance``: subspaces found once, on calibration data, and fixed."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedact.compression.lowrank.algebra import project
from fedact.compression.lowrank.decomposition import DECOMPOSITION, LowRank
from fedact.compression.lowrank.factorization import Factorization, Factors
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.lowrank.subspaces import Subspaces
from fedact.compression.method import State, Traits
from fedact.config.spec import settings


@dataclass(frozen=True)
class FixedSubspaces(Subspaces):
    """Projection onto the bases of the first batch."""

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        bases = self.last_bases(x, state) or self.first_bases(x, rule)
        return project(x, bases), bases


@settings("lance")
class LANCE(LowRank):
    """Projections onto fixed subspaces of channels and positions: only the core is kept of a step.

    Stores the core S = x x2 U2t x3 U3t x4 U4t alone, (B, k2, k3, k4). The bases are the state: the leading singular vectors
    of the first batch (in a run, of the server's calibration examples), never changed. The batch is not truncated.
    Apolinario and Roy, *LANCE*, 2025, arXiv 2509.21617.

    variance: above 0, at most 1, of the calibration batch; with neither it nor ranks 0.8. ranks: fixed ones for channels,
    height and width, whole numbers from 1. max_ranks: caps on the ranks that a variance asks for.

    >>> from fedact.compression import METHODS
    >>> codec = METHODS["lance"](ranks=(40, 5, 5))
    >>> codec.predicted_bytes((16, 96, 14, 14)), codec.predicted_state_bytes((16, 96, 14, 14))
    (64000, 15920)
    """

    name: ClassVar[str] = "lance"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="Apolinario and Roy, LANCE, 2025, arXiv 2509.21617", reads_state=True, calibrated=True
    )

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(1, dimensions))

    @property
    def factorization(self) -> Factorization:
        return FixedSubspaces()
