"""The bytes alive while a block in streams runs forward, from shapes alone: what ``forward.run`` does, step by step."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fedact.nn.streams.arithmetic import TENSORS, Geometry


class ForwardBytes:
    """A block's bytes on images of one shape.

    tensors: the stages' (see ``arithmetic.TENSORS``), of which the shapes matter. shape, after: (channels, rows, columns) of
    the input and of the output. spare: see ``streams.spare``, without gradients.
    """

    def __init__(
        self,
        geometry: Geometry,
        tensors: Sequence[Tensor | None],
        shape: tuple[int, ...],
        after: tuple[int, ...],
        spare: float = 0.0,
    ) -> None:
        self.geometry, self.tensors, self.spare = geometry, tensors, spare
        self.weights = tuple(tensor for tensor in tensors[::TENSORS] if tensor is not None)
        self.shape, self.narrow, self.outputs = shape, after[1] * after[2], after[0]
        first, rows = geometry.first, shape[1:]
        self.wide = prod(rows if first is None else first.size((rows[0], rows[1]), self.weights[0]))
        self.affine, self.affine_peak = self._affine()

    @property
    def products(self) -> int:
        """Multiplications, an example."""
        depthwise, project = self.weights[-2:]
        first = 0 if self.geometry.first is None else self.weights[0].numel() * self.wide
        return first + (depthwise.numel() + project.numel()) * self.narrow

    def peak_bytes(self, examples: int, room: int, channels_last: bool, has_spare: bool = True) -> int:
        """Return the most bytes alive, the output among them and the input not; channels_last: how that lies in memory."""
        channels = len(self.weights[-2])
        room += int(has_spare * self.spare * (examples * prod(self.shape) * self.weights[0].itemsize))
        step = self.geometry.step(torch.Size((examples, *self.shape)), self.weights, room)
        step = -(-channels // -(-channels // step))
        wide, narrow = examples * self.wide * step, examples * self.narrow * step
        kernels = 0 if self.tensors[-2 * TENSORS + 2] is None else prod(self.weights[-2].shape[1:]) * step
        before, held = self._before_filter(step, wide, channels_last)
        copied = narrow if held == 0 and not channels_last and examples > 1 and step > 1 else 0
        smooth = narrow if self.geometry.depthwise.is_smooth else 0
        group = max(before, held + kernels + narrow, narrow + copied, narrow + smooth + copied)
        output = examples * self.narrow * self.outputs
        # The sum is allocated by the first group's projection.
        alive = max(group + (output if channels > step else 0), narrow + output)
        # A product reads rows of positions: of several images whose channels are not last it makes a copy, once.
        source = 0 if channels_last or examples == 1 or not self._is_product else examples * prod(self.shape)
        return self.weights[0].itemsize * max(self.affine_peak, self.affine + source + alive)

    @property
    def _is_product(self) -> bool:
        return self.geometry.first is not None and self.geometry.is_product(self.weights[0])

    def _before_filter(self, step: int, wide: int, channels_last: bool) -> tuple[int, int]:
        """Return the most elements alive in making some channels of the depthwise input, and those alive with them."""
        first = self.geometry.first
        if first is None:
            return 0, 0
        copied = 0 if self._is_product or channels_last or step == 1 else wide
        return wide + max(copied, wide if first.is_smooth else 0), wide

    def _affine(self) -> tuple[int, int]:
        """Return the elements of the norms' factors, and the most alive while they are made."""
        alive = most = 0
        for start in range(0, len(self.tensors), TENSORS):
            _, bias, mean, _, _, beta = self.tensors[start : start + TENSORS]
            if mean is not None:
                size = mean.numel()
                most = max(most, alive + size * (2 + (bias is not None) + (beta is None)))
                alive += 2 * size
        return alive, most
