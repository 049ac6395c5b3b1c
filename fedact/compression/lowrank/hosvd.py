"""``hosvd``: a core and one factor a mode, as in the paper, and the ways in which it can be had better."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.lowrank.algebra import SOLVERS, Spectrum, factor, full_ranks, mode_product
from fedact.compression.lowrank.truncated import DECOMPOSITION, LEVELS, PAPER_VARIANCE, Factors, Truncated
from fedact.compression.method import NO_STATE, Compressed, Method, State, Traits, choose, computable, item_size, shape_of
from fedact.compression.operations import Convolution, Operation
from fedact.compression.packing import Quantized, dequantize, packed_elements, quantize, quantized_bytes

GROUP = 64
"""Neighbours in a core or a factor that share a scale, with bits=8 or 4."""


@dataclass(frozen=True)
class HOSVD(Truncated):
    """Truncated HOSVD of the whole batch.

    variance: ranks are, per mode, the smallest that explain this share of the full tensor's variance (as published);
    ranks: fixed ranks such as 4x40x5x5 instead, one a mode; max_ranks: caps on the ranks that a variance asks for.
    With neither variance nor ranks a plan's budget chooses the ranks; where nothing does, the variance is the paper's 0.8.
    truncation: sequential takes each mode's spectrum from what the modes before it left, the smallest mode first and the
    batch last (cheaper, at lower ranks). bits: of the core's and the factors' elements, in groups of 64 with a scale.
    solver: svd is the papers' full SVD of every unfolding. batch: false leaves the batch whole. mean: true keeps every
    channel's mean apart, exactly, and explains the variance around it. Ranks for another number of dimensions leave a
    tensor exact.
    """

    name: ClassVar[str] = "hosvd"
    traits: ClassVar[Traits] = replace(
        DECOMPOSITION, source="Nguyen et al., NeurIPS 2024, arXiv 2411.06346, sections 3.2-3.3", variants=("", "bits=8")
    )

    truncation: Literal["published", "sequential"] = "published"
    bits: Literal[32, 8, 4] = 32
    solver: Literal["gram", "svd"] = "gram"
    batch: bool = True
    mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("hosvd", "truncation", self.truncation, ("published", "sequential"))
        choose("hosvd", "bits", self.bits, (32, 8, 4))
        choose("hosvd", "solver", self.solver, tuple(SOLVERS))

    def modes(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(0 if self.batch else 1, dimensions))

    def decompose(self, x: Tensor, state: State) -> tuple[Tensor, Factors]:
        return self._sequentially(x) if self.truncation == "sequential" else super().decompose(x, state)

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        parts, layout, _ = super().compress(x)
        if self.bits < 32:
            parts = tuple(tensor for part in parts for tensor in quantize(part, self.bits, GROUP))
        return Compressed((*parts, channel_mean(x)) if self.mean else parts, layout)

    def working(self, x: Tensor) -> Tensor:
        return computable(x) - computable(channel_mean(x)) if self.mean else computable(x)

    def reconstruct(self, compressed: Compressed) -> Tensor:
        centred = super().reconstruct(compressed)
        return centred + compressed.tensors[-1] if self.mean else centred

    def parts(self, compressed: Compressed) -> tuple[Tensor, Factors]:
        layout = compressed.metadata
        stored = compressed.tensors[:-1] if self.mean else compressed.tensors
        if self.bits < 32:
            threes = (Quantized(*stored[place : place + 3]) for place in range(0, len(stored), 3))
            shapes = (layout.core, *(torch.Size((layout.shape[mode], layout.core[mode])) for mode in layout.modes))
            pairs = zip(threes, shapes, strict=True)
            stored = tuple(dequantize(three, self.bits, GROUP, shape, layout.dtype) for three, shape in pairs)
        return super().parts(Compressed(stored, layout))

    def bytes_of(self, elements: int, item_bytes: int) -> int:
        return elements * item_bytes if self.bits == 32 else quantized_bytes(elements, self.bits, GROUP)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape = shape_of(x)
        channels = shape[1] if len(shape) == 4 else shape[-1]
        return super().predicted_bytes(x) + (channels * item_size(x) if self.mean else 0)

    def stored_elements(self, tensor: Tensor) -> int:
        return packed_elements(tensor, self.bits)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        gradient = super().weight_gradient(compressed, grad_output, weight, operation)
        layout = compressed.metadata
        if not (self.mean and isinstance(operation, Convolution) and self.by_factors(layout, weight, operation)):
            return gradient
        # The means are the same in every example: one image, correlated with the summed output gradient.
        image = compressed.tensors[-1].expand(1, *layout.shape[1:])
        return gradient + operation.weight_gradient(image, grad_output.sum(0, keepdim=True), weight)

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return fixed ranks (caps, where a variance is given) at each explained variance; exact where that is smaller."""
        if self.ranks is not None or self.variance is not None:
            return super().levels(x)
        found = self.spectra(self.working(x))
        ranks = {level: self.ranks_at(level, found, x.shape) for level in LEVELS if level >= PAPER_VARIANCE}
        return {level: _smaller(self.with_ranks(fixed), Exact(), x) for level, fixed in ranks.items()}

    @property
    def has_free_settings(self) -> bool:
        return self.ranks is None and self.variance is None

    def spectrum(self, x: Tensor, mode: int) -> Spectrum:
        return SOLVERS[self.solver](x, mode)

    def leading_factor(self, x: Tensor, mode: int, shape: Sequence[int]) -> Tensor:
        if self.solver == "gram":
            return super().leading_factor(x, mode, shape)
        found = self.spectrum(x, mode)
        return factor(x, mode, found, min(self.rank(found, mode, shape), len(found.eigenvalues)))

    def ranks_of(self, x: Tensor | Sequence[int]) -> dict[int, int]:
        if self.truncation == "published" or self.ranks is not None or not isinstance(x, Tensor):
            return super().ranks_of(x)
        _, factors = self._sequentially(self.working(x))
        return {mode: factor.shape[1] for mode, factor in factors.items()}

    def clip(self, ranks: Sequence[int] | None, shape: Sequence[int]) -> dict[int, int]:
        clipped = super().clip(ranks, shape)
        if self.truncation == "published":
            return clipped
        # What one mode loses, the unfoldings of those after it no longer have.
        left = list(shape)
        for mode in self._order(shape):
            left[mode] = clipped[mode] = min(clipped[mode], full_ranks(left)[mode])
        return clipped

    def _sequentially(self, x: Tensor) -> tuple[Tensor, Factors]:
        core, factors = x, {}
        for mode in self._order(x.shape):
            factors[mode] = self.leading_factor(core, mode, x.shape)
            core = mode_product(core, factors[mode].T, mode)
        return core, {mode: factors[mode] for mode in sorted(factors)}

    def _order(self, shape: Sequence[int]) -> list[int]:
        # The batch last: the order, and with it the ranks that are left, must not depend on how many examples there are.
        return sorted(self.modes(len(shape)), key=lambda mode: (mode == 0, shape[mode]))


def channel_mean(x: Tensor) -> Tensor:
    """Return every channel's mean over the batch and the positions, with x's number of dimensions and in x's type."""
    channels = 1 if x.dim() == 4 else x.dim() - 1
    others = [dimension for dimension in range(x.dim()) if dimension != channels]
    return computable(x).mean(others, keepdim=True).to(x.dtype) if others else x.clone()


def _smaller(first: Method, second: Method, x: Tensor) -> Method:
    return first if first.predicted_bytes(x) < second.predicted_bytes(x) else second
