"""``quantize``: few bits an element, rounded at random so that the mean is right."""

from collections.abc import Sequence
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedact.compression.method import NO_STATE, Compressed, Count, State, Sweep, Traits, shape_of
from fedact.compression.noise import Noisy, next_seed
from fedact.compression.packing import Quantized, dequantize, dequantize_some, packed_elements, quantize, quantized_bytes
from fedact.config.spec import settings


@settings("quantize")
class Quantize(Noisy):
    """Low-bit codes with stochastic rounding: an unbiased gradient.

    Stores code = floor((x - low) / step + u), u uniform in [0, 1), in ``bits`` bits an element, and for every group of
    neighbours in row-major order its least value and its step, 2 bytes each. The mean of the reconstruction is x, its
    variance at most step^2 / 4 an element. State: the seed of the next step's noise, 8 bytes. A NaN or an infinity makes its
    whole group NaN.
    ActNN: Chen et al., ICML 2021, arXiv 2104.14129, section 4 (group by group; its mixed precision is not part of this).

    bits: of an element, 2 (default), 4 or 8. group: elements that share a scale, whole number from 1, default 256.

    >>> from fedact.compression import METHODS
    >>> METHODS["quantize"](bits=2).predicted_bytes((16, 96, 14, 14))
    79968
    """

    traits: ClassVar[Traits] = Traits(
        "ActNN: Chen et al., ICML 2021, arXiv 2104.14129, section 4",
        published="bits=2",
        sweep=Sweep("bits", (2, 4, 8)),
        per_example=True,
        tensor_seconds=4e-4,
        element_seconds=8e-9,
        gentlest="bits=8,group=16",
        rounding=2e-2,
    )

    bits: Literal[8, 4, 2] = 2
    group: Count = 256

    def compress(self, x: Tensor, state: State = NO_STATE) -> Compressed:
        _, generator = self.noise(x, state)
        quantized = quantize(x, self.bits, self.group, generator)
        return Compressed(tuple(quantized), (x.shape, x.dtype), next_seed(generator))

    def reconstruct(self, compressed: Compressed) -> Tensor:
        return dequantize(Quantized(*compressed.tensors), self.bits, self.group, *compressed.metadata)

    def reconstruct_channels(self, compressed: Compressed, channels: range) -> Tensor:
        shape, dtype = compressed.metadata
        if self.group * self.bits % 8:
            return super().reconstruct_channels(compressed, channels)
        size = prod(shape[2:])
        starts = [(example * shape[1] + channels.start) * size for example in range(shape[0])]
        parts = [range(start, start + len(channels) * size) for start in starts]
        quantized, common = Quantized(*compressed.tensors), (prod(shape), dtype)
        values = [dequantize_some(quantized, self.bits, self.group, part, *common) for part in parts]
        whole = values[0] if len(values) == 1 else torch.stack(values)
        return whole.view(shape[0], len(channels), *shape[2:])

    def predicted_bytes(self, x: Tensor | Sequence[int]) -> int:
        return quantized_bytes(prod(shape_of(x)), self.bits, self.group)

    def stored_elements(self, tensor: Tensor) -> int:
        return packed_elements(tensor, self.bits)
