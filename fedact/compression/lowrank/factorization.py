"""How a tensor becomes a core and factors: every mode from the full tensor (as published), or one after the other."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from fedact.compression.lowrank.algebra import SOLVERS, Spectrum, factor, full_ranks, mode_product, project
from fedact.compression.lowrank.leading_vectors import leading_factor, quick_spectrum
from fedact.compression.lowrank.ranks import RankRule
from fedact.compression.method import State

Factors = dict[int, Tensor]
"""Orthonormal factors by mode, each (dimension, rank); a mode without one is not truncated."""


@dataclass(frozen=True)
class Factorization(ABC):
    """Computes the core and the factors of ``x = core x1 U1 x2 U2 ...`` for the modes of a RankRule.

    solver: of an unfolding's spectrum, ``gram`` (eigenvectors of its Gram matrix) or ``svd`` (the papers' full SVD).
    """

    constant_ranks: ClassVar[bool] = False
    """Whether a plan turns a variance into ranks, once; otherwise every step chooses its own, up to the plan's caps."""

    solver: str = "gram"

    @abstractmethod
    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        """Return the core and the factors, in x's type.

        state: of an earlier step that ``continues``, or without tensors.
        """

    def state_modes(self, dimensions: int) -> tuple[int, ...]:
        """Return the modes whose factors are the state, for a tensor with so many dimensions."""
        return ()

    def continues(self, state: State, shape: Sequence[int], rule: RankRule) -> bool:
        """Tell whether a tensor of this shape can start from the state."""
        return True

    def limits(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the largest rank that each mode's factor can have."""
        return full_ranks(shape)

    def feasible(self, ranks: dict[int, int], shape: Sequence[int]) -> dict[int, int]:
        """Return the ranks by mode, lowered where they cannot occur together."""
        return ranks

    def ranks(self, x: Tensor, rule: RankRule) -> Mapping[int, int]:
        """Return the ranks by mode that ``factorize`` uses in a first step."""
        if rule.variance is None:
            return rule.bounds
        spectra = {mode: self.spectrum(x, mode) for mode in rule.bounds}
        return self.feasible({mode: rule.rank(mode, spectrum.eigenvalues) for mode, spectrum in spectra.items()}, x.shape)

    def spectrum(self, x: Tensor, mode: int) -> Spectrum:
        """Return the spectrum of one unfolding."""
        return SOLVERS[self.solver](x, mode)

    def quick_spectrum(self, x: Tensor, mode: int) -> Spectrum:
        """Return the spectrum of one unfolding, good enough to choose ranks by."""
        return quick_spectrum(x, mode) if self.solver == "gram" else self.spectrum(x, mode)

    def leading_factor(self, x: Tensor, mode: int, rule: RankRule) -> Float[Tensor, "dimension rank"]:
        """Return the leading left singular vectors of one unfolding, as many as the rule says."""
        if self.solver == "gram":
            return leading_factor(x, mode, rule.bounds[mode], rule.variance)
        spectrum = self.spectrum(x, mode)
        return factor(x, mode, spectrum, min(rule.rank(mode, spectrum.eigenvalues), len(spectrum.eigenvalues)))


@dataclass(frozen=True)
class HigherOrderSVD(Factorization):
    """Every mode's factor from the unfolding of the full tensor, as published (De Lathauwer et al., 2000)."""

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        factors = {mode: self.leading_factor(x, mode, rule) for mode in rule.bounds}
        return project(x, factors, rule.caps), factors


@dataclass(frozen=True)
class SequentialHOSVD(Factorization):
    """ST-HOSVD (Vannieuwenhoven et al., 2012): each mode's factor from the core that the modes before it left.

    The smallest mode first, the batch last: the order, and with it the ranks, must not depend on the number of examples.
    """

    def factorize(self, x: Tensor, rule: RankRule, state: State) -> tuple[Tensor, Factors]:
        core, factors = x, {}
        for mode in _order(rule.bounds, x.shape):
            factors[mode] = self.leading_factor(core, mode, rule)
            core = mode_product(core, factors[mode].T, mode)
        return core, {mode: factors[mode] for mode in sorted(factors)}

    def feasible(self, ranks: dict[int, int], shape: Sequence[int]) -> dict[int, int]:
        # Energy that one mode has dropped is missing from the unfoldings of those after it.
        ranks, core = dict(ranks), list(shape)
        for mode in _order(ranks, shape):
            core[mode] = ranks[mode] = min(ranks[mode], full_ranks(core)[mode])
        return ranks

    def ranks(self, x: Tensor, rule: RankRule) -> Mapping[int, int]:
        if rule.variance is None:
            return rule.bounds
        _, factors = self.factorize(x, rule, State())
        return {mode: factor.shape[1] for mode, factor in factors.items()}


def _order(modes: Mapping[int, int], shape: Sequence[int]) -> list[int]:
    return sorted(modes, key=lambda mode: (mode == 0, shape[mode]))
