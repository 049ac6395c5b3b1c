"""The autograd function of a block in streams, which keeps the block's narrow input through a method."""

from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedact.compression.method import Compressed, Method
from fedact.config.errors import ConfigError
from fedact.nn.layers.accumulation import gradient_buffers
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import save, saved
from fedact.nn.layers.function import as_output
from fedact.nn.streams import forward
from fedact.nn.streams.arithmetic import TENSORS, Geometry, ranges
from fedact.nn.streams.backward import Backward, Totals
from fedact.nn.streams.pooled import PooledStage
from fedact.nn.streams.source import DecodedInput, Input, WholeInput

ARGUMENTS = 4
"""Of the function before the stages' tensors."""


class Rooms(NamedTuple):
    """Bytes for the wide maps of a block: without a gradient, and forward and backward with one.

    decoding: for these backward, with the input where it is decoded.
    """

    frozen: int
    forward: int
    backward: int
    decoding: int


class StreamedBlock(torch.autograd.Function):
    """y = block(x), of which the gradients are those of x as the method reconstructs it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codec: LayerCodec,
        geometry: Geometry | PooledStage,
        rooms: Rooms,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.method, compressed, _ = codec.encode(x, x)
        save(ctx, ctx.method, compressed, *tensors)  # type: ignore[arg-type]
        ctx.shape, ctx.room, ctx.geometry, sizes = x.shape, rooms.decoding, geometry, weights(tensors)
        ctx.step = geometry.step(x.shape, sizes, rooms.backward, backward=True)
        return as_output(output(x, geometry, tensors, geometry.step(x.shape, sizes, rooms.forward)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ConfigError(
                "no second derivatives (create_graph=True) through a block that runs in streams: "
                "compress without room, or fedact.restore(model) first"
            )
        compressed, tensors = saved(ctx)
        buffers = _buffers(ctx, tensors)
        sums = [None if buffer is None else buffer.total for buffer in buffers]
        totals = [Totals(sums[place], sums[place + 1]) for place in range(0, len(sums), TENSORS)]
        # At once, for what was decoded need not stay beside it.
        as_map = isinstance(ctx.geometry, Geometry) and ctx.geometry.is_product(tensors[0])
        source = _source(ctx.method, compressed, ctx.shape, ctx.room, as_map)
        needs_input = ctx.needs_input_grad[0]
        if isinstance(ctx.geometry, PooledStage):
            result = ctx.geometry.backward(gradient, source, tensors, totals[0], ctx.step, needs_input)
        else:
            result = Backward(gradient, source, ctx.geometry, tensors, totals).run(ctx.step, needs_input)
        return result, None, None, None, *(None if buffer is None else buffer.result for buffer in buffers)


def output(x: Tensor, geometry: Geometry | PooledStage, tensors: tuple[Tensor | None, ...], step: int) -> Tensor:
    """Return a block's output for x, with ``step`` of its wide channels at a time."""
    return geometry.run(x, tensors, step) if isinstance(geometry, PooledStage) else forward.run(x, geometry, tensors, step)


def _source(method: Method, compressed: Compressed, shape: torch.Size, room: int, as_map: bool) -> Input:
    """Return the reconstructed input; where the method can, channels of at most half of ``room`` bytes at a time.

    as_map: laid out as a map is.
    """
    size = prod(shape) * torch.float32.itemsize
    if is_small(size, room) or not method.reconstructs_channels:
        return WholeInput(method.reconstruct(compressed), as_map)
    parts = ranges(shape[1], min(shape[1], -(-2 * size // room)))
    return DecodedInput(partial(method.reconstruct_channels, compressed), shape, parts)


def is_small(size: int, room: int) -> bool:
    """Tell whether an input of so many bytes is decoded once for the whole backward pass of a block with this room."""
    return 4 * size <= room


class _Buffer(NamedTuple):
    """The tensor that a gradient is added to, and whether it has to be returned to autograd."""

    total: Tensor
    is_returned: bool

    @property
    def result(self) -> Tensor | None:
        return self.total if self.is_returned else None


def _buffers(ctx: Any, tensors: tuple[Tensor | None, ...]) -> list[_Buffer | None]:
    """Return, for the stages' tensors, what their gradients are added to; None for what needs none."""
    needed = ctx.needs_input_grad[ARGUMENTS:]
    # Of x first; the functions before this one in the graph are those of its tensors.
    places = accumulate((tensor is not None for tensor in tensors), initial=0)
    wanted = [place + 1 for place, need in zip(places, needed, strict=False) if need]
    totals = iter(gradient_buffers(ctx, wanted))
    return [_buffer(tensor, next(totals)) if need else None for tensor, need in zip(tensors, needed, strict=True)]


def _buffer(tensor: Tensor | None, total: Tensor | None) -> _Buffer | None:
    assert tensor is not None
    return _Buffer(torch.zeros_like(tensor), True) if total is None else _Buffer(total, False)


def weights(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Return the convolutions' weights among the stages' tensors."""
    return tuple(tensor for tensor in tensors[::TENSORS] if tensor is not None)
