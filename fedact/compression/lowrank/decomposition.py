"""What the decompositions share: a core and factors of some modes, ranks by variance, the gradient from the factors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from fedact.compression.accumulation import Total, add_weight_gradient
from fedact.compression.exact import Exact
from fedact.compression.lowrank.algebra import channel_mean, compose
from fedact.compression.lowrank.bit_depth import CORE_TYPES, BitDepth, in_own_storage, signed
from fedact.compression.lowrank.factorization import Factorization, Factors, HigherOrderSVD
from fedact.compression.lowrank.layer_gradient import add_linear_gradient, factors_are_enough, layer_gradient, of_means
from fedact.compression.lowrank.layout import Layout
from fedact.compression.lowrank.nested import Spectra, nested_reconstructions
from fedact.compression.lowrank.ranks import RankRule, Ranks, check_ranks
from fedact.compression.method import (
    NO_STATE,
    Compressed,
    Method,
    State,
    Sweep,
    Traits,
    Variance,
    computable,
    item_size,
    shape_of,
)
from fedact.compression.operations import Operation
from fedact.compression.plane import is_product
from fedact.config.errors import ConfigError

PAPER_VARIANCE = 0.8
"""The explained variance of the papers' headline figures."""
LEVELS = (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8)
"""Explained variances between which a budget chooses."""

DECOMPOSITION = Traits(
    "",
    published="variance=0.8",
    sweep=Sweep("variance", (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)),
    gentlest="variance=1.0",
)
"""What the decompositions have in common."""


@dataclass(frozen=True)
class LowRank(Method):
    """A core and orthonormal factors: ``x ~ core x1 U1 x2 U2 ...`` over the modes of ``modes``.

    A method is composed of a rank rule (variance, ranks, max_ranks), a factorization and a bit depth.
    variance: ranks are, per mode, the smallest that explain this share of the full tensor's variance (as published);
    ranks: fixed ranks such as 4x40x5x5 instead, one a mode; max_ranks: caps on the ranks that a variance asks for.
    Without any of them the variance is the paper's 0.8. Ranks for another number of dimensions leave a tensor exact.
    """

    name: ClassVar[str]

    variance: Variance | None = None
    ranks: Ranks = None
    max_ranks: Ranks = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.ranks is not None:
            raise ConfigError(f"{self.name} takes variance or ranks, not both")
        linear, several, usual = (len(self.modes(dimensions)) for dimensions in (2, 3, 4))
        for ranks in (self.ranks, self.max_ranks):
            if ranks is not None:
                check_ranks(self.name, ranks, linear, several, usual)

    @property
    def factorization(self) -> Factorization:
        """How the core and the factors are computed."""
        return HigherOrderSVD()

    @property
    def bit_depth(self) -> BitDepth:
        """The bits that an element of the core and the factors takes."""
        return BitDepth()

    @property
    def mean(self) -> bool:
        """Whether every channel's mean is stored apart, exactly, and the decomposition is of what is left."""
        return False

    def modes(self, dimensions: int) -> tuple[int, ...]:
        """Return the modes that are truncated, of a tensor with so many dimensions."""
        return tuple(range(dimensions))

    def rank_rule(self, shape: Sequence[int]) -> RankRule:
        """Return the rule for a tensor's ranks; raises ConfigError where the number of given ranks is not its modes'."""
        return _rank_rule(self, tuple(shape))

    def bounds(self, ranks: Sequence[int] | None, shape: Sequence[int]) -> dict[int, int]:
        """Return the ranks (the largest, where there are none) by mode, none above what its factor can have."""
        modes, limits = self.modes(len(shape)), self.factorization.limits(shape)
        if ranks is not None and len(ranks) != len(modes):
            raise ConfigError(f"{len(ranks)} ranks are given for a tensor of {len(shape)} dimensions")
        pairs = zip(modes, ranks or [limits[mode] for mode in modes], strict=True)
        return self.factorization.feasible({mode: min(rank, limits[mode]) for mode, rank in pairs}, shape)

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        rule, factorization = self.rank_rule(x.shape), self.factorization
        state = state if factorization.continues(state, x.shape, rule) else NO_STATE
        core, factors = factorization.factorize(self._centred(x), rule, state)
        if self.bit_depth.bits < 32:
            core, factors = signed(core, factors)
        held = factorization.state_modes(x.dim())
        layout = Layout(x.shape, x.dtype, core.shape, tuple(mode for mode in factors if mode not in held), held)
        next_state = NO_STATE
        if held:
            ranks = state.metadata or {mode: factor.shape[1] for mode, factor in factors.items()}
            next_state = State(tuple(in_own_storage(factors[mode], x.dtype) for mode in held), ranks)
        stored = [in_own_storage(core, CORE_TYPES.get(x.dtype, x.dtype))]
        stored += [in_own_storage(factors[mode], x.dtype) for mode in layout.modes]
        del core, factors
        packed = self.bit_depth.pack(stored)
        return Compressed((*packed, channel_mean(x)) if self.mean else packed, layout, next_state)

    def _centred(self, x: Tensor) -> Tensor:
        """Return the tensor that is decomposed, in a type with enough digits for linear algebra."""
        return computable(x) - computable(channel_mean(x)) if self.mean else computable(x)

    def reconstruct(self, compressed: Compressed) -> Tensor:
        centred = compose(*self.parts(compressed)).to(compressed.metadata.dtype)
        return centred + compressed.tensors[-1] if self.mean else centred

    def parts(self, compressed: Compressed) -> tuple[Tensor, Factors]:
        """Return the core and all factors by mode, the state's too, in a type with enough digits for linear algebra."""
        layout = compressed.metadata
        stored = compressed.tensors[:-1] if self.mean else compressed.tensors
        shapes = (layout.core, *(torch.Size((layout.shape[mode], layout.core[mode])) for mode in layout.modes))
        core, *stored_factors = map(computable, self.bit_depth.unpack(stored, shapes, layout.dtype))
        factors = dict(zip(layout.modes, stored_factors, strict=True))
        return core, factors | dict(zip(layout.state_modes, map(computable, compressed.state.tensors), strict=True))

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape, ranks = shape_of(x), self._ranks_of(x)
        held = self.factorization.state_modes(len(shape))
        core = prod(ranks.get(mode, size) for mode, size in enumerate(shape))
        factors = [shape[mode] * rank for mode, rank in ranks.items() if mode not in held]
        means = shape[min(1, len(shape) - 1)] if self.mean else 0
        stored = sum(self.bit_depth.bytes(elements, item_size(x)) for elements in (core, *factors))
        return stored + means * item_size(x)

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape, ranks = shape_of(x), self._ranks_of(x)
        return sum(shape[mode] * ranks[mode] for mode in self.factorization.state_modes(len(shape))) * item_size(x)

    def _ranks_of(self, x: Tensor | Sequence[int]) -> Mapping[int, int]:
        """Return the rank of each mode for a tensor in a first step, or the largest for a shape."""
        rule = self.rank_rule(shape_of(x))
        if rule.variance is None or not isinstance(x, Tensor):
            return rule.bounds
        return self.factorization.ranks(self._centred(x), rule)

    def stored_elements(self, tensor: Tensor) -> int:
        return self.bit_depth.elements(tensor)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        """Return the weight gradient from the factors where that takes fewer multiplications than from the whole tensor."""
        if not self._factors_are_enough(compressed.metadata, weight, operation):
            return super().weight_gradient(compressed, grad_output, weight, operation)
        (core, factors), caps = self.parts(compressed), self.rank_rule(compressed.metadata.shape).caps
        gradient = layer_gradient(core, factors, computable(grad_output), computable(weight), operation, caps)
        gradient = gradient.to(weight.dtype)
        if not self.mean:
            return gradient
        del core, factors
        return gradient + operation.weight_gradient(*of_means(compressed, grad_output), weight)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        if not is_product(operation, weight):
            super().add_weight_gradient(total, compressed, grad_output, weight, operation)
        elif not self._factors_are_enough(compressed.metadata, weight, operation):
            add_weight_gradient(total, operation, self.reconstruct(compressed), grad_output, weight)
        else:
            add_linear_gradient(total, *self.parts(compressed), grad_output, self.rank_rule(compressed.metadata.shape).caps)
            if self.mean:
                add_weight_gradient(total, operation, *of_means(compressed, grad_output), weight)

    def _factors_are_enough(self, layout: Layout, weight: Tensor, operation: Operation) -> bool:
        caps = self.rank_rule(layout.shape).caps
        ranks = [caps.get(mode, size) for mode, size in enumerate(layout.core)]
        return factors_are_enough(ranks, layout.shape, self.modes(len(ranks)), weight, operation)

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

    def levels(self, x: Tensor, spectra: Spectra | None = None) -> dict[float, Method]:
        """Return caps at each explained variance down to the one given, or the ranks that a plan fixes."""
        if self.ranks is not None:
            return {1.0: self}
        ranks, least = self.ranks_by_variance(x, spectra), self.variance or PAPER_VARIANCE
        if self.factorization.constant_ranks:
            return {1.0: self.with_ranks(ranks(least))}
        levels = [*(level for level in LEVELS if level > least), least]
        return {level: replace(self, max_ranks=ranks(level)) for level in levels}

    def spectra(self, x: Tensor) -> Spectra:
        rule, centred = self.rank_rule(x.shape), self._centred(x)
        return {mode: self.factorization.quick_spectrum(centred, mode) for mode in rule.bounds}

    def ranks_by_variance(self, x: Tensor, spectra: Spectra | None = None) -> Callable[[float], tuple[int, ...]]:
        """Return a function from an explained variance to the ranks of the truncated modes, for tensors like x."""
        rule, centred = self.rank_rule(x.shape), self._centred(x) if spectra is None else x
        found = spectra or {mode: self.factorization.spectrum(centred, mode) for mode in rule.bounds}
        return lambda variance: tuple(rule.rank(mode, each.eigenvalues, variance) for mode, each in found.items())

    def reconstructions(self, x: Tensor, methods: Sequence[Method], spectra: Spectra | None = None) -> Iterator[Tensor]:
        at_ranks = [method for method in methods if isinstance(method, LowRank) and method.ranks is not None]
        if len(at_ranks) < len(methods) or self.factorization != HigherOrderSVD():
            yield from super().reconstructions(x, methods)
            return
        centred, ranks = self._centred(x), [method.rank_rule(x.shape).bounds for method in at_ranks]
        for found in nested_reconstructions(centred, spectra or self.spectra(x), ranks, self.bit_depth):
            yield found.to(x.dtype) + channel_mean(x) if self.mean else found.to(x.dtype)

    def with_ranks(self, ranks: tuple[int, ...]) -> Self:
        """Return the same method at fixed ranks."""
        return replace(self, variance=None, max_ranks=None, ranks=ranks)


@lru_cache(maxsize=1024)
def _rank_rule(method: LowRank, shape: tuple[int, ...]) -> RankRule:
    caps = method.bounds(method.max_ranks, shape) if method.max_ranks else {}
    if method.ranks is not None:
        return RankRule(method.bounds(method.ranks, shape), None, caps)
    return RankRule(caps or method.bounds(None, shape), method.variance or PAPER_VARIANCE, caps)
