"""What the decompositions share: a core and factors of some modes, ranks by variance, the gradient from the factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.lowrank.algebra import Spectrum, compose, full_ranks, gram_spectrum, project, rank_for_variance
from fedact.compression.lowrank.factor_gradient import factor_gradient, factors_are_cheaper
from fedact.compression.lowrank.leading_vectors import leading_factor
from fedact.compression.method import (
    NO_STATE,
    Compressed,
    Method,
    State,
    Sweep,
    Traits,
    computable,
    item_size,
    owned,
    shape_of,
)
from fedact.compression.operations import Convolution, Operation
from fedact.config.errors import ConfigError

PAPER_VARIANCE = 0.8
"""The explained variance of the papers' headline figures."""
LEVELS = (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8)
"""Explained variances between which a budget chooses."""

CORE_TYPES = {torch.float16: torch.bfloat16}
"""A core's largest element is near the tensor's norm, which is out of float16's range long before its elements are."""

DECOMPOSITION = Traits("", published="variance=0.8", sweep=Sweep("variance", (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)))
"""What the decompositions have in common."""

Factors = dict[int, Tensor]
"""Orthonormal factors by mode; a mode without one is whole."""


class Layout(NamedTuple):
    """The tensor's shape and type, the core's shape; whose factors follow the core, and whose are the state."""

    shape: torch.Size
    dtype: torch.dtype
    core: torch.Size
    modes: tuple[int, ...]
    state_modes: tuple[int, ...]


@dataclass(frozen=True)
class Truncated(Method):
    """A core and one factor a mode, over the modes of ``modes``.

    variance: ranks are, per mode, the smallest that explain this share of the full tensor's variance (as published);
    ranks: fixed ranks such as 4x40x5x5 instead, one a mode; max_ranks: caps on the ranks that a variance asks for.
    Without any of them the variance is the paper's 0.8. Ranks for another number of dimensions leave a tensor exact.
    """

    name: ClassVar[str]
    fixed_by_a_plan: ClassVar[bool] = False
    """Whether a plan turns a variance into ranks, once; otherwise every step chooses its own, up to the plan's caps."""

    variance: float | None = None
    ranks: tuple[int, ...] | None = None
    max_ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.ranks is not None:
            raise ConfigError(f"{self.name} takes variance or ranks, not both")
        if self.variance is not None and not 0 < self.variance <= 1:
            raise ConfigError(f"{self.name}: variance is above 0 and at most 1, not {self.variance:g}")
        for setting in ("ranks", "max_ranks"):
            ranks = getattr(self, setting)
            if ranks is not None:
                object.__setattr__(self, setting, self._checked(tuple(ranks)))

    def _checked(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        linear, several, usual = (len(self.modes(dimensions)) for dimensions in (2, 3, 4))
        if len(ranks) in (linear, several, usual) and all(isinstance(rank, int) and rank >= 1 for rank in ranks):
            return ranks
        also = "" if linear == usual else f" ({linear} or {several} for a linear layer's input)"
        spelled = "x".join(map(str, ranks))
        raise ConfigError(f"{self.name}: ranks are {usual} whole numbers from 1{also}, not {spelled}")

    def modes(self, dimensions: int) -> tuple[int, ...]:
        """Return the modes that are truncated, of a tensor with so many dimensions."""
        return tuple(range(dimensions))

    def state_modes(self, dimensions: int) -> tuple[int, ...]:
        """Return those of the modes whose factors are kept from step to step."""
        return ()

    def decompose(self, x: Tensor, state: State) -> tuple[Tensor, Factors]:
        """Return the core and the factors of ``modes``, in x's type: each mode's from the full tensor, as published."""
        factors = self.leading_factors(x)
        return project(x, factors, self.caps(x.shape)), factors

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        state = state if self.continues(state, x) else NO_STATE
        core, factors = self.decompose(self.working(x), state)
        held = self.state_modes(x.dim())
        layout = Layout(x.shape, x.dtype, core.shape, tuple(mode for mode in factors if mode not in held), held)
        ranks = {mode: factor.shape[1] for mode, factor in factors.items()}
        following = State(tuple(_in_own_storage(factors[mode], x.dtype) for mode in held), state.metadata or ranks)
        own = (_in_own_storage(factors[mode], x.dtype) for mode in layout.modes)
        return Compressed((_in_own_storage(core, CORE_TYPES.get(x.dtype, x.dtype)), *own), layout, following)

    def working(self, x: Tensor) -> Tensor:
        """Return the tensor that is decomposed, in a type with enough digits."""
        return computable(x)

    def continues(self, state: State, x: Tensor) -> bool:
        """Tell whether a state is one that x can go on from."""
        return True

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return compose(*self.parts(compressed)).to(compressed.metadata.dtype)

    def parts(self, compressed: Compressed) -> tuple[Tensor, Factors]:
        """Return the core and all factors, the state's too, in a type with enough digits."""
        core, *own = map(computable, compressed.tensors)
        layout = compressed.metadata
        factors = dict(zip(layout.modes, own, strict=True))
        return core, factors | dict(zip(layout.state_modes, map(computable, compressed.state.tensors), strict=True))

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape, ranks = shape_of(x), self.ranks_of(x)
        held = self.state_modes(len(shape))
        own = [shape[mode] * rank for mode, rank in ranks.items() if mode not in held]
        return sum(self.bytes_of(elements, item_size(x)) for elements in (core_elements(shape, ranks), *own))

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape, ranks = shape_of(x), self.ranks_of(x)
        return sum(shape[mode] * ranks[mode] for mode in self.state_modes(len(shape))) * item_size(x)

    def bytes_of(self, elements: int, item_bytes: int) -> int:
        """Return the bytes of a stored core or factor."""
        return elements * item_bytes

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        if isinstance(operation, Convolution) and self.by_factors(compressed.metadata, weight, operation):
            core, factors = self.parts(compressed)
            grad_output, kernel = computable(grad_output), computable(weight)
            caps = self.caps(compressed.metadata.shape)
            return factor_gradient(core, factors, grad_output, kernel, operation, caps).to(weight.dtype)
        return super().weight_gradient(compressed, grad_output, weight, operation)

    def by_factors(self, layout: Layout, weight: Tensor, operation: Convolution) -> bool:
        """Tell whether the gradient comes from the factors or from the rebuilt tensor, whichever is cheaper."""
        caps = self.caps(layout.shape)
        ranks = [caps.get(mode, size) for mode, size in enumerate(layout.core)]
        return factors_are_cheaper(ranks, layout.shape, self.modes(4), weight, operation)

    def caps(self, shape: Sequence[int]) -> dict[int, int]:
        """Return the caps by mode: where there are any, the way of computing, and with it the transient bytes, is theirs."""
        return self.clip(self.max_ranks, shape) if self.max_ranks else {}

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return caps at each explained variance down to the one given, or the ranks that a plan fixes."""
        if self.ranks is not None:
            return {1.0: self}
        found = self.spectra(self.working(x))
        if self.fixed_by_a_plan:
            return {1.0: self.with_ranks(self.ranks_at(None, found, x.shape))}
        least = self.variance or PAPER_VARIANCE
        levels = [*(level for level in LEVELS if level > least), least]
        return {level: replace(self, max_ranks=self.ranks_at(level, found, x.shape)) for level in levels}

    def for_dimensions(self, dimensions: int) -> Method:
        """Return exact for a tensor that the given ranks are not for, and drop caps that are not for it."""
        count = len(self.modes(dimensions))
        if self.ranks is not None and len(self.ranks) != count:
            return Exact()
        return self if self.max_ranks is None or len(self.max_ranks) == count else replace(self, max_ranks=None)

    @property
    def fixed_size(self) -> bool:
        return self.ranks is not None

    @property
    def ceiling(self) -> Method:
        # Full variance up to the caps: the same work as below them, and as many bytes as they allow.
        return self if self.max_ranks is None else replace(self, variance=1.0)

    def spectrum(self, x: Tensor, mode: int) -> Spectrum:
        """Return the spectrum of one unfolding."""
        return gram_spectrum(x, mode)

    def spectra(self, x: Tensor) -> dict[int, Spectrum]:
        """Return the spectra of the full tensor, by mode."""
        return {mode: self.spectrum(x, mode) for mode in self.modes(x.dim())}

    def leading_factors(self, x: Tensor) -> Factors:
        """Return the leading singular vectors of each unfolding of the full tensor, as published."""
        return {mode: self.leading_factor(x, mode, x.shape) for mode in self.modes(x.dim())}

    def leading_factor(self, x: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
        """Return one mode's factor at the given rank or variance; shape: of the tensor that x is, or is what is left of."""
        if self.ranks is not None:
            return leading_factor(x, mode, self.clip(self.ranks, shape)[mode], None)
        return leading_factor(x, mode, self.clip(self.max_ranks, shape)[mode], self.variance or PAPER_VARIANCE)

    def rank(self, found: Spectrum, mode: int, shape: Sequence[int], variance: float | None = None) -> int:
        """Return the rank of a mode: the one given, or the one for the variance, up to the cap."""
        if self.ranks is not None:
            return self.clip(self.ranks, shape)[mode]
        rank = rank_for_variance(found.eigenvalues, variance or self.variance or PAPER_VARIANCE)
        return min(rank, self.clip(self.max_ranks, shape)[mode])

    def ranks_at(self, variance: float | None, found: Mapping[int, Spectrum], shape: Sequence[int]) -> tuple[int, ...]:
        """Return the ranks at an explained variance (None: the method's own) for spectra of the full tensor."""
        return tuple(self.rank(spectrum, mode, shape, variance) for mode, spectrum in found.items())

    def ranks_of(self, x: Tensor | Sequence[int]) -> dict[int, int]:
        """Return the rank of each mode for a tensor, or the largest for a shape."""
        shape = shape_of(x)
        if self.ranks is not None or not isinstance(x, Tensor):
            return self.clip(self.ranks or self.max_ranks, shape)
        return self.clip(self.ranks_at(None, self.spectra(self.working(x)), shape), shape)

    def clip(self, ranks: Sequence[int] | None, shape: Sequence[int]) -> dict[int, int]:
        """Return the ranks by mode, none above what its factor can have; raises ConfigError where their number is wrong."""
        modes, most = self.modes(len(shape)), self.most(shape)
        if ranks is None:
            return {mode: most[mode] for mode in modes}
        if len(ranks) != len(modes):
            raise ConfigError(f"{len(ranks)} ranks are given for a tensor of {len(shape)} dimensions")
        return {mode: min(rank, most[mode]) for mode, rank in zip(modes, ranks, strict=True)}

    def most(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the largest rank that a factor of each mode can have."""
        return full_ranks(shape)

    def with_ranks(self, ranks: tuple[int, ...]) -> Self:
        """Return the same method at fixed ranks."""
        return replace(self, variance=None, max_ranks=None, ranks=ranks)


def core_elements(shape: Sequence[int], ranks: Mapping[int, int]) -> int:
    """Return the number of elements of a core; a mode without a rank is whole."""
    return prod(ranks.get(mode, size) for mode, size in enumerate(shape))


def _in_own_storage(x: Tensor, dtype: torch.dtype) -> Tensor:
    return owned(x.to(dtype).contiguous())
