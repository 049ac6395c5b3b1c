"""``transform``: cosine transforms in space, a step that spends bits where the variance is, and an entropy coder."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, isfinite, log10, prod, sqrt
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fedact.compression.accumulation import Total, add_weight_gradient
from fedact.compression.method import NO_STATE, Compressed, Method, State, Sweep, Traits, Variance, part_way, shape_of
from fedact.compression.operations import Operation
from fedact.compression.plane import is_product
from fedact.compression.transform.bitstream import least_body, levels_end
from fedact.compression.transform.cosine import RINGS, Frequencies, as_images, frequencies, from_images, images_shape
from fedact.compression.transform.decoder import decode, images_behind
from fedact.compression.transform.encoder import Target, encode
from fedact.compression.transform.few_frequencies import pointwise_gradient
from fedact.compression.transform.sparse import output as pointwise_output
from fedact.config.spec import settings

MOST_BITS = 16
DEFAULT_VARIANCE = 0.96
"""On MobileNetV2's layers the weight gradient's cosine is then about 0.95."""
LEVELS = (12.0, 8.0, 5.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Bits an element between which a budget chooses. In streams masks are made again from what is kept: there 8 are too few for
every layer's gradient to be as good as exact."""
DECAY, DECAY_FOR_MASKS = 0.5, 0.25
"""How fast the frequencies' weights fall: rematerialized masks need the higher ones more than a weight gradient does."""
COARSE_STEP = 0.05
"""Of coefficients of about 1: small enough for all of them to be coded in a first trial."""


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
        variants=("", "derive=2"),
        per_example=True,
        fixed_workspace=False,
        worst_case_count=4,
        tensor_seconds=7e-4,
        element_seconds=4e-9,
        gentlest="bits=16,derive=0",
        rounding=1e-3,
    )

    variance: Variance | None = None
    bits: Annotated[float, Field(gt=0, le=MOST_BITS)] | None = None

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        images = as_images(x)
        means = images.mean((0, 1, 2))
        if not isfinite(float(means.sum())):
            raise FloatingPointError("a tensor with a NaN or an infinity cannot be coded: training may have diverged")
        by, scale = self._frequencies(*images.shape[1:3]), sqrt(prod(images.shape[1:3]))
        last = float(state.tensors[0]) if state.tensors else 0.0
        packed, step = encode(images, means * scale, by, self._target(images), last)
        return Compressed((packed,), Layout(x.shape, x.dtype), State((torch.tensor([step], device=x.device),)))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        shape, dtype = compressed.metadata
        sizes = images_shape(shape)
        images = decode(compressed.tensors[0], sizes, self._frequencies(*sizes[1:3]))
        return from_images(images, shape).to(dtype)

    def weight_gradient(self, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation) -> Tensor:
        if not is_product(operation, weight) or not self._in_float32(compressed, grad_output):
            return super().weight_gradient(compressed, grad_output, weight, operation)
        shape = images_shape(compressed.metadata.shape)
        by = self._frequencies(*shape[1:3])
        grads = grad_output.movedim(1, -1).reshape(*shape[:3], -1)
        found = pointwise_gradient(compressed.tensors[0], shape, by, grads)
        if isinstance(found, Tensor):
            return found.view(weight.shape)
        x = from_images(images_behind(found, shape, by), compressed.metadata.shape)
        del found
        return operation.weight_gradient(x, grad_output, weight)

    def add_weight_gradient(
        self, total: Total, compressed: Compressed, grad_output: Tensor, weight: Tensor, operation: Operation
    ) -> None:
        if not is_product(operation, weight):
            super().add_weight_gradient(total, compressed, grad_output, weight, operation)
            return
        if self._in_float32(compressed, grad_output):
            shape = images_shape(compressed.metadata.shape)
            by = self._frequencies(*shape[1:3])
            grads = grad_output.movedim(1, -1).reshape(*shape[:3], -1)
            found = pointwise_gradient(compressed.tensors[0], shape, by, grads, total)
            if isinstance(found, Tensor):
                return
            x = from_images(images_behind(found, shape, by), compressed.metadata.shape)
            del found, grads
        else:
            x = self.reconstruct(compressed)
        add_weight_gradient(total, operation, x, grad_output, weight)

    def output(self, compressed: Compressed, weight: Tensor, bias: Tensor | None, operation: Operation) -> Tensor:
        if is_product(operation, weight) and self._in_float32(compressed, weight):
            sizes = images_shape(compressed.metadata.shape)
            images = pointwise_output(compressed.tensors[0], sizes, self._frequencies(*sizes[1:3]), weight.flatten(1))
            if images is not None:
                images = images if bias is None else images.add_(bias)
                return from_images(images, compressed.metadata.shape)
        return super().output(compressed, weight, bias, operation)

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

    def levels(self, x: Tensor, spectra: Any = None) -> dict[float, Method]:
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
        return replace(self, bits=part_way(self.bits, other.bits, share))

    @property
    def fixed_size(self) -> bool:
        return self.variance is None and self.bits is not None

    @property
    def ceiling(self) -> Method:
        return replace(self, variance=None, bits=self.bits or MOST_BITS)

    def _in_float32(self, compressed: Compressed, *others: Tensor) -> bool:
        """Tell whether all are in float32, on a CPU."""
        tensors = (*compressed.tensors, *others)
        types = {compressed.metadata.dtype, *(other.dtype for other in others)}
        return types == {torch.float32} and all(tensor.device.type == "cpu" for tensor in tensors)

    def _frequencies(self, height: int, width: int) -> Frequencies:
        """Return the cosine transform of maps of a size: made where it is used, for what was kept would count as saved."""
        return frequencies(height, width, self._decay)

    @property
    def _decay(self) -> float:
        return DECAY_FOR_MASKS if self.recompute else DECAY

    def _most(self, shape: Sequence[int]) -> int:
        _, height, width, channels = images_shape(shape)
        overhead = levels_end(channels, min(RINGS, height * width)) + least_body(channels)
        return overhead + ceil(prod(shape) * (self.bits or MOST_BITS) / 8)

    def _target(self, images: Tensor) -> Target:
        batch, height, width, channels = images.shape
        room = self._most((batch, channels, height, width)) - levels_end(channels, min(RINGS, height * width))
        # The share of the energy that may be lost.
        return Target(None if self.fixed_size else 1 - (self.variance or DEFAULT_VARIANCE), room)


def _bits_of(size: int, x: Tensor) -> float:
    """Return the bits an element that so many bytes are, in two digits, rounded up."""
    bits = max(8 * size / max(1, x.numel()), 1e-9)
    digit = 10.0 ** (floor(log10(bits)) - 1)
    return min(MOST_BITS, float(f"{ceil(bits / digit) * digit:.2g}"))
