"""``transform``: cosine transforms in space, a step that spends bits where the variance is, and an entropy coder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, floor, log10, prod, sqrt
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from fedact.compression.method import NO_STATE, Compressed, Convolutions, Method, State, Sweep, Traits, Variance, shape_of
from fedact.compression.transform.bitstream import least_body, levels_end, read, write
from fedact.compression.transform.coefficients import (
    Threshold,
    above_threshold,
    classify,
    collect_candidates,
    error_threshold,
    octaves,
    size_threshold,
    sort_by_class,
)
from fedact.compression.transform.cosine import (
    RINGS,
    Frequencies,
    as_images,
    chunks,
    frequencies,
    from_images,
    images_shape,
    inverse,
)
from fedact.compression.transform.cosine import transform as cosine_transform
from fedact.compression.transform.step_size import ROUND_DOWN, Symbols, largest_step, symbols, symbols_within, threshold_near
from fedact.config.spec import settings

MOST_BITS = 16
DEFAULT_VARIANCE = 0.96
"""On MobileNetV2's layers the weight gradient's cosine is then about 0.95."""
LEVELS = (8.0, 5.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Bits an element between which a budget chooses."""
DECAY, DECAY_FOR_MASKS = 0.5, 0.25
"""How fast the frequencies' weights fall: rematerialized masks need the higher ones more than a weight gradient does."""
COARSE_STEP = 0.05
"""Of coefficients of about 1: small enough for all of them to be coded in a first trial."""
LEAST_USE = 0.85
"""Of the room, that a step near the last batch's must use; below, the step is searched from the start."""


class Layout(NamedTuple):
    """The tensor's shape and type."""

    shape: torch.Size
    dtype: torch.dtype


@settings("transform")
class Transform(Method):
    """Transform coding: weighted cosine coefficients, one uniform step, runs of zeros in Rice's code.

    Every channel loses its mean and goes through an orthonormal cosine transform (DCT-II) in height and width; a coefficient
    is weighted by how much an error at its frequency harms the weight gradient; all are divided by one step and rounded,
    small ones to zero. One step for all, with an entropy coder, is reverse water-filling: bits go where the variance is.
    Stores one stream of bytes: a header of 92, half a byte for every channel and group of frequencies (at most 64), and the
    body. State: the last step, where the next search starts, 4 bytes. Raises FloatingPointError for a NaN or an infinity.
    Parts: Goyal, IEEE Signal Processing Magazine 18(5), 2001; Golomb, 1966; Rice, 1979.

    variance: above 0, at most 1; as many bytes as it takes to keep this share of the weighted coefficients' energy.
    bits: above 0, at most 16; exactly so many bits an element, whatever is in it; with a variance, no more than that.
    With neither a plan's budget chooses bits; where there is none, the variance is 0.96.
    derive: whole number from 0, default 2; an input at most so many convolutions behind another saved one, and no smaller
    than it, is not saved but rematerialized from that one in the backward pass.

    >>> import torch
    >>> from fedact.compression import METHODS
    >>> ramp = torch.linspace(0, 1, 8)
    >>> x = torch.outer(ramp, ramp).expand(4, 6, 8, 8)
    >>> codec = METHODS["transform"](bits=0.5)
    >>> compressed = codec.compress(x)
    >>> compressed.tensors[0].nbytes, codec.predicted_bytes(x), 4 * x.numel()
    (224, 224, 6144)
    >>> bool((codec.reconstruct(compressed) - x).norm() < 0.1 * x.norm())
    True
    """

    traits: ClassVar[Traits] = Traits(
        "transform coding: Goyal, IEEE Signal Processing Magazine 18(5), 2001; Golomb 1966, Rice 1979",
        published="variance=0.96",
        sweep=Sweep("variance", (0.6, 0.8, 0.9, 0.96, 0.98, 0.99, 0.995, 0.999, 0.9999)),
        variants=("", "derive=0"),
        per_example=True,
        fixed_workspace=False,
        worst_case_count=4,
        tensor_seconds=1.6e-3,
        element_seconds=2e-8,
    )

    variance: Variance | None = None
    bits: Annotated[float, Field(gt=0, le=MOST_BITS)] | None = None
    derive: Convolutions = 2

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        images = as_images(x)
        means = images.mean((0, 1, 2))
        if not means.isfinite().all():
            raise FloatingPointError("a tensor with a NaN or an infinity cannot be coded: training may have diverged")
        packed, step = self._encode(images, means * sqrt(prod(images.shape[1:3])), state)
        return Compressed((packed,), Layout(x.shape, x.dtype), State((torch.tensor([step], device=x.device),)))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, dtype = compressed.metadata
        batch, height, width, channels = images_shape(shape)
        by = frequencies(height, width, self._decay, compressed.tensors[0].device)
        decoded = read(compressed.tensors[0], channels, by.rings)
        images = decoded.means.new_zeros(batch, height, width, channels)
        images.view(-1)[decoded.places.long()] = decoded.values
        images[:, 0, 0] += decoded.means
        for chunk in chunks(images):
            chunk.copy_(inverse(chunk, by))
        return from_images(images, shape).to(dtype)

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        shape = shape_of(x)
        if self.variance is None and self.bits is not None:
            return self._most(shape)
        return self.compress(x).tensors[0].nbytes if isinstance(x, Tensor) else self._most(shape)

    def predicted_state_bytes(self, x: Tensor | Sequence[int]) -> int:
        return torch.float32.itemsize

    def worst_cases(self, x: Tensor) -> list[tuple[Tensor, State]]:
        # Behind a far smaller step every coefficient of noise is a candidate; of zeros no step fills the room.
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        tiny, coarse = (State((torch.tensor([step], device=x.device),)) for step in (1e-30, COARSE_STEP))
        return [(noise, tiny), (noise.sign(), tiny), (noise, coarse), (torch.zeros_like(x), NO_STATE)]

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return the methods with bits fixed; the bits are a cap where a variance is given."""
        if self.bits is not None:
            return {1.0: self}
        if self.variance is not None:
            return {1.0: replace(self, bits=_bits_of(self.predicted_bytes(x) * 9 // 8, x))}
        return {bits: replace(self, bits=bits) for bits in LEVELS}

    @property
    def has_free_settings(self) -> bool:
        return self.variance is None and self.bits is None

    def between(self, other: Method, share: float) -> Method | None:
        if not (isinstance(other, Transform) and self.bits and other.bits):
            return None
        bits = self.bits ** (1 - share) * other.bits**share
        return replace(self, bits=float(f"{bits:.2g}"))

    @property
    def fixed_size(self) -> bool:
        return self.variance is None and self.bits is not None

    @property
    def ceiling(self) -> Method:
        return replace(self, variance=None, bits=self.bits or MOST_BITS)

    @property
    def _decay(self) -> float:
        return DECAY_FOR_MASKS if self.derive else DECAY

    def _most(self, shape: Sequence[int]) -> int:
        _, height, width, channels = images_shape(shape)
        overhead = levels_end(channels, min(RINGS, height * width)) + least_body(channels)
        return overhead + ceil(prod(shape) * (self.bits or MOST_BITS) / 8)

    def _encode(self, images: Tensor, means: Tensor, state: State) -> tuple[UInt8[Tensor, " bytes"], float]:
        """Return the bytes and their step: near the last one where that serves."""
        last = float(state.tensors[0]) if state.tensors else 0.0
        zero: Threshold = lambda _: 0.0  # noqa: E731
        tries = [(threshold_near(last), last)] if last else []
        if self.fixed_size:
            threshold = size_threshold(8 * self._room(images), images.numel())
        else:
            threshold = error_threshold(self._share, float(means.square().mean()) / prod(images.shape[1:3]))
        tries += [(threshold, 0.0), (zero, 0.0)]
        trials = (self._trial(images, means, threshold, guess) for threshold, guess in tries)
        coded, of_channels, of_rings = next(trial for trial in trials if trial)
        body = self._room(images) if self.fixed_size else coded.size
        return write(coded, of_channels, of_rings, levels_end(len(of_channels), len(of_rings)) + body), coded.step

    @property
    def _share(self) -> float:
        """The share of the energy that may be lost."""
        return 1 - (self.variance or DEFAULT_VARIANCE)

    def _room(self, images: Tensor) -> int:
        """Return the bytes of the body at most."""
        batch, height, width, channels = images.shape
        return self._most((batch, channels, height, width)) - levels_end(channels, min(RINGS, height * width))

    def _trial(
        self, images: Tensor, means: Tensor, threshold: Threshold, guess: float
    ) -> tuple[Symbols, Tensor, Tensor] | None:
        """Return symbols, and levels of channels and rings; None where the threshold is too high."""
        _, height, width, channels = images.shape
        by = frequencies(height, width, self._decay, images.device)
        candidates = collect_candidates(_coefficients(images, means, by), threshold)
        step = None
        if not self.fixed_size:
            error = self._share * (candidates.energy + len(images) * float(means.square().sum()))
            step = largest_step(error, candidates.energy, candidates.values, means, len(images), candidates.threshold, guess)
            if step is None and candidates.threshold > 0:
                return None
        if step:
            candidates = above_threshold(step * (1 - ROUND_DOWN), candidates)
        of_channels, of_rings = octaves(candidates, channels, by.rings)
        ordered, room = sort_by_class(candidates, classify(of_channels, of_rings, by.rings)), self._room(images)
        coded = symbols(step, ordered, means) if step else None
        if coded is None or coded.size > room:
            coded = symbols_within(room, ordered, means, candidates.threshold, step or guess)
            if guess and coded.size < LEAST_USE * room:
                return None
        return coded, of_channels, of_rings


def _coefficients(images: Tensor, means: Float[Tensor, " channels"], by: Frequencies) -> Iterator[Tensor]:
    """Yield the weighted coefficients of a few images at a time, without the channels' means."""
    for chunk in chunks(images):
        coefficients = cosine_transform(chunk, by)
        # A map of one position is its own coefficient, and must stay as it is.
        coefficients = coefficients.clone() if coefficients is chunk else coefficients
        coefficients[:, 0, 0] -= means
        yield coefficients


def _bits_of(size: int, x: Tensor) -> float:
    """Return the bits an element that so many bytes are, in two digits, rounded up."""
    bits = max(8 * size / max(1, x.numel()), 1e-9)
    digit = 10.0 ** (floor(log10(bits)) - 1)
    return min(MOST_BITS, float(f"{ceil(bits / digit) * digit:.2g}"))
