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

    variance: the ranks are those of the calibration batch; ranks: given ones for channels, height, width; max_ranks: caps.
    The bases are the state, found from the first batch (in a run, from the server's calibration examples) and never changed;
    the batch stays whole.
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
