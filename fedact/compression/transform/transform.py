"""``transform``: cosine transforms in space, a step that spends bits where the variance is, and an entropy coder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, floor, log10, prod, sqrt
from typing import Annotated, ClassVar, NamedTuple

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from fedact.compression.exact import Exact
from fedact.compression.method import NO_STATE, Compressed, Convolutions, Method, State, Sweep, Traits, Variance, shape_of
from fedact.compression.transform.bitstream import least_body, levels_end, read, write
from fedact.compression.transform.coefficients import (
    Threshold,
    above,
    by_class,
    candidates,
    classes,
    leaving,
    levels,
    room_for,
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
from fedact.compression.transform.step_size import ROUND_DOWN, Symbols, filling, keeping, near, symbols
from fedact.config.spec import settings

MOST_BITS = 16
DEFAULT_VARIANCE = 0.96
"""On MobileNetV2's layers the weight gradient's cosine is then about 0.95."""
LEVELS = (8.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Bits an element between which a budget chooses."""
FALL, FALL_OF_MASKS = 0.5, 0.25
"""How fast the frequencies' weights fall: masks made again need the higher ones more than a weight gradient does."""
HARD_STEP = 0.05
"""Of coefficients of about 1: small enough for all of them to be coded in a first trial."""
USELESS = 0.85
"""The last batch's step is looked for anew where it fills less of the room than this."""


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
        packed, step = self._coded(images, means * sqrt(prod(images.shape[1:3])), state)
        return Compressed((packed,), Layout(x.shape, x.dtype), State((torch.tensor([step], device=x.device),)))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, dtype = compressed.metadata
        batch, height, width, channels = images_shape(shape)
        by = frequencies(height, width, self._fall, compressed.tensors[0].device)
        found = read(compressed.tensors[0], channels, by.rings)
        images = found.means.new_zeros(batch, height, width, channels)
        images.view(-1)[found.places.long()] = found.values
        images[:, 0, 0] += found.means
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
        tiny, coarse = (State((torch.tensor([step], device=x.device),)) for step in (1e-30, HARD_STEP))
        return [(noise, tiny), (noise.sign(), tiny), (noise, coarse), (torch.zeros_like(x), NO_STATE)]

    def levels(self, x: Tensor) -> dict[float, Method]:
        """Return the methods with bits fixed, exact first; the bits are a cap where a variance is given."""
        if self.bits is not None:
            return {1.0: self}
        if self.variance is not None:
            return {1.0: replace(self, bits=_bits_of(self.predicted_bytes(x) * 9 // 8, x))}
        return {32.0: Exact(self.derive), **{bits: replace(self, bits=bits) for bits in LEVELS}}

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
    def _fall(self) -> float:
        return FALL_OF_MASKS if self.derive else FALL

    def _most(self, shape: Sequence[int]) -> int:
        _, height, width, channels = images_shape(shape)
        overhead = levels_end(channels, min(RINGS, height * width)) + least_body(channels)
        return overhead + ceil(prod(shape) * (self.bits or MOST_BITS) / 8)

    def _coded(self, images: Tensor, means: Tensor, state: State) -> tuple[UInt8[Tensor, " bytes"], float]:
        """Return the code and its step: near the last one where that serves."""
        last = float(state.tensors[0]) if state.tensors else 0.0
        nothing: Threshold = lambda _: 0.0  # noqa: E731
        tries = [(near(last), last)] if last else []
        tries += [(self._threshold(images, means), 0.0), (nothing, 0.0)]
        found = (self._tried(images, means, threshold, guess) for threshold, guess in tries)
        chosen, of_channels, of_rings = next(one for one in found if one)
        body = self._room(images) if self.fixed_size else chosen.size
        return write(chosen, of_channels, of_rings, levels_end(len(of_channels), len(of_rings)) + body), chosen.step

    def _threshold(self, images: Tensor, means: Tensor) -> Threshold:
        if self.fixed_size:
            return room_for(8 * self._room(images), images.numel())
        return leaving(self._share, float(means.square().mean()) / prod(images.shape[1:3]))

    @property
    def _share(self) -> float:
        """The share of the energy that may be lost."""
        return 1 - (self.variance or DEFAULT_VARIANCE)

    def _room(self, images: Tensor) -> int:
        """Return the bytes of the body at most."""
        batch, height, width, channels = images.shape
        return self._most((batch, channels, height, width)) - levels_end(channels, min(RINGS, height * width))

    def _tried(
        self, images: Tensor, means: Tensor, threshold: Threshold, guess: float
    ) -> tuple[Symbols, Tensor, Tensor] | None:
        """Return symbols, and levels of channels and rings; None where the threshold was too high for what is asked."""
        _, height, width, channels = images.shape
        by = frequencies(height, width, self._fall, images.device)
        found = candidates(_coefficients(images, means, by), threshold)
        step = None
        if not self.fixed_size:
            error = self._share * (found.energy + len(images) * float(means.square().sum()))
            step = keeping(error, found.energy, found.values, means, len(images), found.least, guess)
            if step is None and found.least > 0:
                return None
        if step:
            found = above(step * (1 - ROUND_DOWN), found)
        of_channels, of_rings = levels(found, channels, by.rings)
        ordered, room = by_class(found, classes(of_channels, of_rings, by.rings)), self._room(images)
        chosen = symbols(step, ordered, means) if step else None
        if chosen is None or chosen.size > room:
            chosen = filling(room, ordered, means, found.least, step or guess)
            if guess and chosen.size < USELESS * room:
                return None
        return chosen, of_channels, of_rings


def _coefficients(images: Tensor, means: Float[Tensor, " channels"], by: Frequencies) -> Iterator[Tensor]:
    """Yield the weighted coefficients of some images at a time, around the channels' means."""
    for chunk in chunks(images):
        found = cosine_transform(chunk, by)
        # A map of one position is its own coefficient, and must stay as it is.
        found = found.clone() if found is chunk else found
        found[:, 0, 0] -= means
        yield found


def _bits_of(size: int, x: Tensor) -> float:
    """Return the bits an element that so many bytes are, in two digits, rounded up."""
    bits = max(8 * size / max(1, x.numel()), 1e-9)
    digit = 10.0 ** (floor(log10(bits)) - 1)
    return min(MOST_BITS, float(f"{ceil(bits / digit) * digit:.2g}"))
