"""``hosvd``: a core and one factor a mode, as in the paper, with the weight gradient straight from the factors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.method import Compressed, Method, item_size, shape_of
from fedact.compression.operations import Convolution, Operation
from fedact.compression.tucker import (
    Spectrum,
    clip_ranks,
    compose,
    factor,
    mode_product,
    rank_for_variance,
    spectra,
    spectrum,
    tucker_elements,
)
from fedact.errors import ConfigError

PAPER_VARIANCE = 0.8
LEVELS = (1.0, 0.99, 0.98, 0.97, 0.95, 0.92, 0.9, 0.85, 0.8)
"""Explained variances between which a budget chooses."""


@dataclass(frozen=True)
class HOSVD(Method):
    """Truncated HOSVD of the whole batch.

    variance: ranks are, per mode, the smallest that explain this share of the full tensor's variance (as published);
    ranks: fixed ranks such as 4x40x5x5 instead; max_ranks: caps on the ranks that a variance asks for.
    Ranks for 4 dimensions are for convolutions: a linear layer's input is then kept exactly.
    With neither variance nor ranks a plan's budget chooses the ranks; where nothing does, the variance is the paper's 0.8.
    """

    source: ClassVar[str] = "Nguyen et al., NeurIPS 2024, arXiv 2411.06346, sections 3.2-3.3"

    variance: float | None = None
    ranks: tuple[int, ...] | None = None
    max_ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.variance is not None and self.ranks is not None:
            raise ConfigError("hosvd takes variance or ranks, not both")
        if self.variance is not None and not 0 < self.variance <= 1:
            raise ConfigError(f"hosvd: variance is above 0 and at most 1, not {self.variance:g}")
        for ranks in (self.ranks, self.max_ranks):
            if ranks is not None and (len(ranks) not in (2, 4) or min(ranks) < 1):
                spelled = "x".join(map(str, ranks))
                raise ConfigError(f"hosvd: ranks are 4 whole numbers from 1 (2 for a linear layer's input), not {spelled}")

    def compress(self, x: Tensor) -> Compressed:
        # Half precision has no eigensolver and too few digits for one; the factors go back to x's type.
        work = x if x.dtype in (torch.float32, torch.float64) else x.float()
        core, factors = work, []
        for mode in range(x.dim()):
            factors.append(self._factor(work, mode))
            core = mode_product(core, factors[-1].T, mode)
        kept = [part.to(x.dtype).clone(memory_format=torch.contiguous_format) for part in (core, *factors)]
        return Compressed(tuple(kept), tuple(x.shape))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        core, *factors = compressed.tensors
        return compose(core, factors)

    def predicted_bytes(self, kept: Tensor | Sequence[int]) -> int:
        shape = shape_of(kept)
        if self.ranks is not None:
            ranks = clip_ranks(self.ranks, shape)
        elif isinstance(kept, Tensor):
            ranks = self._ranks(spectra(kept), shape)
        else:
            ranks = clip_ranks(self.max_ranks or shape, shape)
        return tucker_elements(ranks, shape) * item_size(kept)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        core, *factors = compressed.tensors
        # By the caps where there are any: the way, and with it the transient bytes, must not depend on the data.
        ranks = clip_ranks(self.max_ranks or core.shape, [len(u) for u in factors])
        if isinstance(operation, Convolution) and factors_are_cheaper(ranks, factors, weight, operation):
            return factor_gradient(core, factors, grad_output, weight, operation)
        return super().weight_gradient(compressed, grad_output, weight, operation)

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return fixed ranks (caps, where a variance is given) at each explained variance; exact where that is smaller."""
        if self.ranks is not None:
            return {1.0: self}
        found = spectra(x)
        least = self.variance or LEVELS[-1]
        levels = [level for level in LEVELS if level >= least]
        ranks = {v: HOSVD(variance=v, max_ranks=self.max_ranks)._ranks(found, x.shape) for v in (*levels, least)}
        if self.variance is not None:
            return {level: replace(self, max_ranks=caps) for level, caps in ranks.items()}
        return {level: _smaller(HOSVD(ranks=fixed), Exact(), x) for level, fixed in ranks.items()}

    def for_dimensions(self, dimensions: int) -> Method:
        """Return exact for a tensor that the given ranks are not for, and drop caps that are not for it."""
        if self.ranks is not None and len(self.ranks) != dimensions:
            return Exact()
        if self.max_ranks is not None and len(self.max_ranks) != dimensions:
            return replace(self, max_ranks=None)
        return self

    @property
    def fixed(self) -> bool:
        return self.ranks is not None

    @property
    def ceiling(self) -> Method:
        # Full variance up to the caps: the same work as below them, and as many bytes as they allow.
        return self if self.max_ranks is None else replace(self, variance=1.0)

    def _factor(self, x: Tensor, mode: int) -> Tensor:
        """Return one mode's factor; a mode that given ranks keep whole needs no spectrum, any basis spans it."""
        if self.ranks is not None and clip_ranks(self.ranks, x.shape)[mode] == x.shape[mode]:
            return torch.eye(x.shape[mode], dtype=x.dtype, device=x.device)
        found = spectrum(x, mode)
        return factor(x, mode, found, self._rank(found, mode, x.shape))

    def _rank(self, found: Spectrum, mode: int, shape: Sequence[int]) -> int:
        if self.ranks is not None:
            return clip_ranks(self.ranks, shape)[mode]
        rank = rank_for_variance(found.eigenvalues, self.variance or PAPER_VARIANCE)
        return min(rank, clip_ranks(self.max_ranks or shape, shape)[mode])

    def _ranks(self, found: Sequence[Spectrum], shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._rank(one, mode, shape) for mode, one in enumerate(found))


def _smaller(first: Method, second: Method, x: Tensor) -> Method:
    return first if first.predicted_bytes(x) < second.predicted_bytes(x) else second


def factor_gradient(
    core: Float[Tensor, "k1 k2 k3 k4"],
    factors: Sequence[Tensor],
    grad_output: Float[Tensor, "batch outputs rows columns"],
    weight: Float[Tensor, "outputs inputs kernel_height kernel_width"],
    operation: Convolution,
) -> Float[Tensor, "outputs inputs kernel_height kernel_width"]:
    """Return the weight gradient without rebuilding the activation (the paper's equation, for every geometry).

    Batch: the output gradient is contracted with U1. Space: the core is expanded along height and width only, padded
    (padding is linear along rows and columns) and correlated, a convolution with k1 samples and k2 channels. Channels:
    the result is expanded with U2, each group with its own rows of U2.
    """
    u1, u2, u3, u4 = factors
    contracted = torch.einsum("bk,bohw->kohw", u1, grad_output).contiguous()
    image = operation.pad(mode_product(mode_product(core, u3, 2), u4, 3).contiguous())
    small = weight.new_empty(1).expand(weight.shape[0], u2.shape[1], *weight.shape[2:])
    ungrouped = Convolution(operation.stride, operation.padding, operation.dilation, groups=1)
    correlated = ungrouped.weight_gradient(image, contracted, small)
    by_group = correlated.reshape(operation.groups, -1, *correlated.shape[1:])
    rows = u2.reshape(operation.groups, -1, u2.shape[1])
    return torch.einsum("gokij,gck->gocij", by_group, rows).flatten(0, 1).contiguous()


def factors_are_cheaper(ranks: Sequence[int], factors: Sequence[Tensor], weight: Tensor, operation: Convolution) -> bool:
    """Compare multiplications: correlating k1 x k2 images without groups, or rebuilding all B x C and correlating those."""
    (batch, channels, *_), (k1, k2, *_) = (u.shape[0] for u in factors), ranks
    pixels = prod(u.shape[0] for u in factors[2:])
    outputs, inputs, *kernel = weight.shape
    positions = pixels * prod(kernel) // prod(operation.stride)
    by_factors = outputs * (k1 * batch * pixels // prod(operation.stride) + k1 * k2 * positions)
    by_rebuilding = channels * pixels * (batch * k2 + k1 * k2) + batch * outputs * inputs * positions
    return by_factors < by_rebuilding
