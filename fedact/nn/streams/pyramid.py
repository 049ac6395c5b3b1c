"""PSPNet's decoder without its concatenation: a 1 x 1 convolution of it is a sum of those of its parts."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.compression.exact import Exact
from fedact.compression.lowrank.algebra import memory_order
from fedact.compression.method import Method
from fedact.compression.operations import Convolution
from fedact.config.errors import ConfigError
from fedact.nn.code import run_after
from fedact.nn.graph import named_modules
from fedact.nn.layers.accumulation import gradient_buffers, release
from fedact.nn.layers.activations import Masked
from fedact.nn.layers.base import Swapped, made_class
from fedact.nn.layers.bitmask import apply_mask, pack_mask
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import CodecLayer, autocast_type, save, saved
from fedact.nn.layers.frozen import FrozenConv2d
from fedact.nn.layers.function import as_output, is_recorded, runs_plain
from fedact.nn.layers.fused import is_layer_itself
from fedact.nn.layers.provenance import Handover
from fedact.nn.layers.rematerialized import RematerializedCodec
from fedact.nn.rematerialization import Rematerialized, call_nodes, upstream
from fedact.nn.streams.arithmetic import Images, as_images, map_of
from fedact.torch_private import adaptive_avg_pool2d_backward, is_observed, upsample_bilinear2d_backward

CHANNELS = 64
"""At once, where something of all pixels is added to something."""
_scaled_up = partial(F.interpolate, mode="bilinear", align_corners=True)


def is_pyramid(module: nn.Module) -> bool:
    """Tell whether a plain module is segmentation-models-pytorch's decoder of PSPNet, with the parts that are known here."""
    # Known by its name: the package need not be loaded for it.
    if type(module).__name__ != "PSPDecoder" or not type(module).__module__.startswith("segmentation_models_pytorch."):
        return False
    decoder: Any = module
    convolution, poolings = decoder.conv[0], [block.pool[0] for block in decoder.psp.blocks]
    single = Convolution.of(convolution).is_pointwise(convolution.weight) and convolution.bias is None
    return single and all(type(pooling) is nn.AdaptiveAvgPool2d for pooling in poolings)


class Pyramid(Swapped, nn.Module):
    """The decoder in parts, where nothing sees the concatenation, and its convolution keeps its input as it is."""

    input_codec: LayerCodec

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        module: Any = self
        x, convolution = features[-1], module.conv[0]
        if not self._runs_in_parts(x, convolution):
            return super().forward(features)  # type: ignore[no-any-return]
        sizes = [block.pool[0].output_size for block in module.psp.blocks]
        handover = self._handover(x)
        whole, *pooled = _Pooled.apply(x, sizes, handover) if is_recorded(x) else (x, *_pooled(x, sizes))
        parts = [block.pool[1](part) for block, part in zip(module.psp.blocks, pooled, strict=True)]
        del pooled
        if is_recorded(whole, convolution.weight, *parts):
            y: Tensor = _Sum.apply(whole, convolution.weight, self.input_codec, (x,), *parts)
        else:
            y = _sum(whole, convolution.weight, parts)
        del whole, parts
        _, norm, *others = module.conv
        y = run_after(convolution, norm, y)
        for other in (*others, module.dropout):
            y = other(y)
        return y

    def _handover(self, x: Tensor) -> Handover | None:
        """Return that of the activation that computed x, None where it keeps its own mask."""
        codec = self.input_codec
        origin = codec.source.provenance.origin(x) if isinstance(codec, RematerializedCodec) else None
        return None if origin is None else origin.handover

    def _runs_in_parts(self, x: Tensor, convolution: nn.Module) -> bool:
        module: Any = self
        inside = [module.psp, module.conv, convolution]
        for block in module.psp.blocks:
            inside += [block, block.pool, block.pool[0]]
        if torch.compiler.is_compiling() or runs_plain() or any(is_observed(m) or "forward" in vars(m) for m in inside):
            return False
        plain = type(x) is Tensor and x.dim() == 4 and x.layout is torch.strided and autocast_type(x) is None
        known = isinstance(convolution, CodecLayer | FrozenConv2d) and is_layer_itself(convolution)
        return plain and known and x.numel() > 0 and x.dtype == convolution.weight.dtype


class _Pooled(torch.autograd.Function):
    """x itself and its means over windows; the gradients of the means are added to that of x in place.

    handover: of the activation that computed x, whose mask is kept here, and applied in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[Any], handover: Handover | None) -> tuple[Tensor, ...]:
        ctx.handover = handover
        if handover is not None:
            ctx.order = memory_order(x)
            masks = [pack_mask(x[:, some], ctx.order, handover.slope.passes) for some in _channels(x)]
            ctx.save_for_backward(*masks)
        return x.detach(), *_pooled(x, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *pooled: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        # What ``_Sum`` made, and nothing else has.
        for some, mask in zip_longest(_channels(gradient), ctx.saved_tensors):
            part = gradient[:, some]
            for each in pooled:
                part += adaptive_avg_pool2d_backward(each[:, some].contiguous(), part)
            if mask is not None:
                part.copy_(apply_mask(part, mask, ctx.order))
        if ctx.handover is not None:
            ctx.handover.give(gradient, gradient)
        return gradient, None, None


def _channels(x: Tensor) -> list[slice]:
    return [slice(start, start + CHANNELS) for start in range(0, x.shape[1], CHANNELS)]


class _Sum(torch.autograd.Function):
    """The 1 x 1 convolution of the parts, scaled up to x, and x, saving the parts and, through the codec, x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, codec: LayerCodec, given: tuple[Tensor], *parts: Tensor) -> Tensor:
        ctx.method, compressed, _ = codec.encode(x, *given)
        save(ctx, ctx.method, compressed, weight, *parts)
        ctx.shape = x.shape
        return as_output(_sum(x, weight, parts))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _check_first_derivative()
        compressed, (weight, *parts) = saved(ctx)
        buffer = gradient_buffers(ctx, [1])[0] if ctx.needs_input_grad[1] else None
        total = torch.zeros_like(weight) if buffer is None and ctx.needs_input_grad[1] else buffer
        results, start = list[Tensor](), 0
        for part in parts:
            columns = slice(start, start := start + part.shape[1])
            below = map_of(_scaled_down(gradient, part.shape))
            if total is not None:
                total[:, columns, 0, 0].addmm_(below.t(), map_of(part))
            results.append(as_images(below @ weight[:, columns, 0, 0], part.shape))
        if total is not None:
            total[:, start:, 0, 0].addmm_(map_of(gradient).t(), map_of(ctx.method.reconstruct(compressed)))
        del compressed, parts
        release(ctx)
        whole = as_images(map_of(gradient) @ weight[:, start:, 0, 0], ctx.shape) if ctx.needs_input_grad[0] else None
        return whole, total if buffer is None else None, None, None, *results


def _pooled(x: Images, sizes: Sequence[Any]) -> tuple[Images, ...]:
    return tuple(F.adaptive_avg_pool2d(x, size) for size in sizes)


def _sum(x: Images, weight: Tensor, parts: Sequence[Images]) -> Images:
    """Return the 1 x 1 convolution of the parts, scaled up, and x; the parts are convolved first, being smaller."""
    start = sum(part.shape[1] for part in parts)
    y, start = as_images(map_of(x) @ weight[:, start:, 0, 0].t(), x.shape), 0
    for part in parts:
        small = F.conv2d(part, weight[:, start : (start := start + part.shape[1])])
        for some in _channels(small):
            y[:, some] += _scaled_up(small[:, some], size=x.shape[2:])
    return y


def _scaled_down(gradient: Images, shape: Sequence[int]) -> Images:
    """Return the gradient of what was scaled up, from rows and columns as in ``shape``."""
    sizes = list(gradient.shape[2:]), [*gradient.shape[:2], *shape[2:]]
    return upsample_bilinear2d_backward(gradient, *sizes, True)


def _check_first_derivative() -> None:
    if torch.is_grad_enabled():
        raise ConfigError(
            "no second derivatives (create_graph=True) through a pyramid that runs in parts: "
            "compress without room, or fedact.restore(model) first"
        )


class Found(NamedTuple):
    """A decoder that runs in parts, by name; method: of its convolution's input. way: to make x again, None to save it."""

    name: str
    method: Method
    way: Rematerialized | None


def find(model: nn.Module, methods: Mapping[str, Method]) -> list[Found]:
    """Return a plain model's decoders that may run in parts: where a method keeps their convolution's input as it is.

    With recompute, x is made again from the input of the convolution before it, where that is saved for its own weight.
    """
    found, calls, modules = list[Found](), call_nodes(model), dict(named_modules(model))
    for name, module in modules.items():
        prefix = f"{name}." if name else ""
        method = methods.get(f"{prefix}conv.0", Exact())
        pooling = calls.get(f"{prefix}psp.blocks.0.pool.0")
        if not is_pyramid(module) or pooling is None or not method.traits.keeps_input or method.segment:
            continue
        ways = upstream(pooling.all_input_nodes[0], None, 1, modules) if method.recompute else ()
        found.append(Found(name, method, next((way for way in ways if way.source in methods), None)))
    return found


def install(model: nn.Module, found: Sequence[Found]) -> None:
    """Run these decoders in parts, in place, after the other layers are installed."""
    for name, method, way in found:
        decoder: Any = model.get_submodule(name)
        decoder.input_codec = LayerCodec(method, 0)
        source: Any = None if way is None else model.get_submodule(way.source)
        if way is not None and isinstance(source, CodecLayer) and not isinstance(source.codec, RematerializedCodec):
            chain: list[Any] = [model.get_submodule(each) for each in way.chain]
            decoder.input_codec = RematerializedCodec(source.codec, chain, counts=False)
            for link in chain:
                link.chains = (*link.chains, source.codec.provenance)
            if isinstance(chain[-1], Masked) and chain[-1].source is not None:
                chain[-1].mask_is_deferred = True
        decoder.__class__ = pyramid_class(decoder.__class__)


@cache
def pyramid_class(plain: Any) -> Any:
    """Return the subclass of a decoder that runs in parts."""
    bare = plain.plain if issubclass(plain, Swapped) else plain
    return made_class(pyramid_class, plain, plain.__name__, (Pyramid, plain), plain=bare)
