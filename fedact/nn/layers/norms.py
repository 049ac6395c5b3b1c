"""Norms of each example's own statistics: frozen or trained, their gradients are those of the reconstructed input."""

from functools import cache
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.base import ChannelNorm, Swapped, made_class, noted
from fedact.nn.layers.compressed import CodecLayer, keeps_graph, save, saved
from fedact.nn.layers.function import apply, as_output, check_first_derivative, is_recorded, without_autocast
from fedact.torch_private import native_group_norm_backward, native_layer_norm_backward

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of an input, a scale and a shift; None for those that are not asked for."""


class _Normalized(torch.autograd.Function):
    """A norm of x with a scale and a shift, or without, that saves x compressed by the module's method."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, module: "CompressedNorm") -> Tensor:
        with without_autocast(x):
            ctx.method, compressed, _ = module.codec.encode(x, x)
        ctx.has_weight, ctx.has_bias, ctx.module = weight is not None, bias is not None, module
        save(ctx, ctx.method, compressed, *(tensor for tensor in (weight, bias) if tensor is not None))
        ctx.keeps_graph = keeps_graph(ctx, x, module.codec, compressed)
        return as_output(module.normalized(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative(ctx.method, ctx.keeps_graph)
        compressed, others = saved(ctx)
        weight = others[0] if ctx.has_weight else None
        bias = others[-1] if ctx.has_bias else None
        needed = [*ctx.needs_input_grad[:3]]
        with without_autocast(grad_output):
            x = ctx.method.reconstruct(compressed)
            if torch.is_grad_enabled():
                return *_through(ctx.module.normalized, (x, weight, bias), grad_output, needed), None
            return *ctx.module.gradients(grad_output, x, weight, bias, needed), None


def _through(function: Any, tensors: tuple[Tensor | None, ...], grad_output: Tensor, needed: list[bool]) -> Gradients:
    """Return the gradients of a function's tensors by autograd, differentiable where a backward pass is."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        if not differentiable:
            leaves = [tensor if tensor is None else tensor.detach() for tensor in tensors]
            tensors = tuple(t if t is None else t.requires_grad_(need) for t, need in zip(leaves, needed, strict=True))
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=True) if need and tensor is not None]
        y = function(*tensors)
        found = iter(torch.autograd.grad(y, wanted, grad_output.to(y.dtype), create_graph=differentiable))
    first, second, third = (next(found) if need else None for need in needed)
    return first, second, third


class CompressedNorm(CodecLayer):
    """A norm that computes its statistics from its input: frozen or trained, it saves the input compressed."""

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the norm of x with this scale and shift."""
        raise NotImplementedError

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        """Return the gradients of input, scale and shift that are needed."""
        return _through(self.normalized, (x, weight, bias), grad_output, needed)

    def slope_times(self, grad_output: Tensor, x: Tensor) -> Tensor:
        """Return the input's gradient, as an activation does."""
        gradient, _, _ = self.gradients(grad_output, x, *self._scale_and_shift(), [True, False, False])
        assert gradient is not None
        return gradient

    @noted
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._scale_and_shift()
        if not self.compresses(x, next((tensor for tensor in (weight, bias) if is_recorded(tensor)), None)):
            return self.normalized(x, weight, bias)
        return apply(_Normalized, x, weight, bias, self)  # type: ignore[no-any-return]

    def _scale_and_shift(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the weight, read once, for a parametrized one is computed at every reading, and the bias."""
        module: Any = self
        return module.weight, getattr(module, "bias", None)


class CompressedLayerNorm(CompressedNorm, nn.LayerNorm):
    """Layer norm over the last dimensions that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.LayerNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        # Under autocast x, and on a CPU its gradient too, are of a lower type.
        dtype = x.dtype if weight is None else weight.dtype
        x, grad_output = x.to(dtype), grad_output.to(dtype)
        dimensions = tuple(range(-len(self.normalized_shape), 0))
        variance, mean = torch.var_mean(x, dim=dimensions, correction=0, keepdim=True)
        statistics = mean, variance.add_(self.eps).rsqrt_()
        found = native_layer_norm_backward(grad_output, x, self.normalized_shape, *statistics, weight, bias, needed)
        return found[0], found[1], found[2]


class ChannelsFirstNorm(CompressedLayerNorm):
    """Layer norm over channels, dimension 1 of images, that saves its input compressed."""

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return super().normalized(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        last, gradient = (tensor.permute(0, 2, 3, 1) for tensor in (x, grad_output))
        grad_input, grad_weight, grad_bias = super().gradients(gradient, last, weight, bias, needed)
        return None if grad_input is None else grad_input.permute(0, 3, 1, 2), grad_weight, grad_bias


class CompressedChannelNorm(ChannelsFirstNorm, ChannelNorm):
    """``ChannelNorm`` that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = ChannelNorm


class CompressedRMSNorm(CompressedNorm, nn.RMSNorm):
    """Root-mean-square norm that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.RMSNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)


class GroupedNorm(CompressedNorm):
    """A norm over groups of channels, dimension 1, and all positions."""

    eps: float

    def groups_of(self, x: Tensor) -> int:
        """Return into how many groups the channels of x fall."""
        raise NotImplementedError

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        dtype = x.dtype if weight is None else weight.dtype
        x, grad_output = x.to(dtype), grad_output.to(dtype)
        last = x.dim() == 4 and x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        x, grad_output = (tensor.contiguous(memory_format=layout) for tensor in (x, grad_output))
        groups = self.groups_of(x)
        batch, channels, *positions = x.shape
        by_group = x.view(batch, groups, channels // groups, *positions)
        variance, mean = torch.var_mean(by_group, dim=tuple(range(2, by_group.dim())), correction=0)
        statistics = mean, variance.add_(self.eps).rsqrt_()
        sizes = batch, channels, prod(positions), groups
        found = native_group_norm_backward(grad_output, x, *statistics, weight, *sizes, needed)
        return found[0], found[1], found[2]


class CompressedGroupNorm(GroupedNorm, nn.GroupNorm):
    """Group norm that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.GroupNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    def groups_of(self, x: Tensor) -> int:
        return self.num_groups


@cache
def instance_norm_class(plain: Any) -> Any:
    """Return the subclass of an instance norm without running statistics that saves its input compressed."""

    def normalized(self: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, self.eps)

    def groups_of(self: Any, x: Tensor) -> int:
        return x.shape[1]

    members = {"plain": plain, "normalized": normalized, "groups_of": groups_of}
    return made_class(instance_norm_class, plain, f"Compressed{plain.__name__}", (GroupedNorm, plain), **members)


OF_PACKAGES = {
    "LayerNorm": CompressedLayerNorm,
    "LayerNorm2d": ChannelsFirstNorm,
    "GroupNorm": CompressedGroupNorm,
    "GroupNorm1": CompressedGroupNorm,
}
"""What stands in for norms of torchvision and timm that compute what torch's do, by name."""


def known_norm(module: nn.Module) -> Any:
    """Return the replacement of a norm of torchvision or timm, None for other modules, and for one in timm's fast way."""
    kind = type(module)
    theirs = kind.__module__.startswith(("torchvision.", "timm.")) and isinstance(module, nn.LayerNorm | nn.GroupNorm)
    if not theirs or kind.__name__ not in OF_PACKAGES or getattr(module, "_fast_norm", False):
        return None
    return norm_class(kind)  # type: ignore[arg-type]


def is_channels_first(module: nn.Module) -> bool:
    """Tell whether a module is a layer norm of torchvision or timm over dimension 1, plain or not."""
    kind = type(module).plain if isinstance(module, Swapped) else type(module)
    return kind.__name__ == "LayerNorm2d" and kind.__module__.startswith(("torchvision.", "timm."))


@cache
def norm_class(plain: Any) -> Any:
    """Return the subclass of a known norm that saves its input compressed."""
    return made_class(norm_class, plain, f"Compressed{plain.__name__}", (OF_PACKAGES[plain.__name__], plain), plain=plain)
