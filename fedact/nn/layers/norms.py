"""Norms of each example's own statistics: over tokens, channels or groups of channels; frozen or trained."""

from functools import cache
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.base import ChannelNorm, Swapped, made_class
from fedact.nn.layers.example_norm import CompressedNorm, Gradients, in_type_of
from fedact.torch_private import (
    native_group_norm,
    native_group_norm_backward,
    native_layer_norm,
    native_layer_norm_backward,
)


class CompressedLayerNorm(CompressedNorm, nn.LayerNorm):
    """Layer norm over the last dimensions that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.LayerNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        x, grad_output = in_type_of(weight, x), in_type_of(weight, grad_output)
        statistics = self._statistics(x)
        found = native_layer_norm_backward(grad_output, x, self.normalized_shape, *statistics, weight, bias, needed)
        return found[0], found[1], found[2]

    def inverse_deviation(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return self._statistics(in_type_of(weight, x))[1]

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and inverse deviation; the kernel is many times as fast as ``torch.var_mean`` on a CPU."""
        _, mean, inverse = native_layer_norm(x, self.normalized_shape, None, None, self.eps)
        return mean, inverse


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

    def inverse_deviation(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return super().inverse_deviation(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2)


class CompressedChannelNorm(ChannelsFirstNorm, ChannelNorm):
    """``ChannelNorm`` that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = ChannelNorm


class CompressedRMSNorm(CompressedNorm, nn.RMSNorm):
    """Root-mean-square norm that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.RMSNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)

    def inverse_deviation(self, x: Tensor, weight: Tensor | None) -> Tensor:
        x, dimensions = in_type_of(weight, x), tuple(range(-len(self.normalized_shape), 0))
        length = torch.linalg.vector_norm(x, dim=dimensions, keepdim=True)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        mean_square: Tensor = length.square_().div_(prod(self.normalized_shape))
        return mean_square.add_(eps).rsqrt_()


class GroupedNorm(CompressedNorm):
    """A norm over groups of channels, dimension 1, and all positions."""

    eps: float

    def groups_of(self, x: Tensor) -> int:
        """Return into how many groups the channels of x fall."""
        raise NotImplementedError

    def gradients(
        self, grad_output: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, needed: list[bool]
    ) -> Gradients:
        x, layout = self._ordered(in_type_of(weight, x))
        grad_output = in_type_of(weight, grad_output).contiguous(memory_format=layout)
        statistics, sizes = self._statistics(x), self._sizes(x)
        found = native_group_norm_backward(grad_output, x, *statistics, weight, *sizes, needed)
        return found[0], found[1], found[2]

    def inverse_deviation(self, x: Tensor, weight: Tensor | None) -> Tensor:
        x, _ = self._ordered(in_type_of(weight, x))
        return self._statistics(x)[1]

    def rescale(self, gradient: Tensor, ratio: Tensor) -> None:
        by_group = gradient.view(*ratio.shape, -1, *gradient.shape[2:])
        by_group.mul_(ratio.view(*ratio.shape, *[1] * (by_group.dim() - 2)))

    def _ordered(self, x: Tensor) -> tuple[Tensor, torch.memory_format]:
        """Return x in an order that the kernels take, and that order."""
        last = x.dim() == 4 and x.is_cpu and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return x.contiguous(memory_format=layout), layout

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        """Return the numbers of examples, channels, positions and groups."""
        return x.shape[0], x.shape[1], prod(x.shape[2:]), self.groups_of(x)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and inverse deviation, (examples, groups)."""
        _, mean, inverse = native_group_norm(x, None, None, *self._sizes(x), self.eps)
        return mean, inverse


class CompressedGroupNorm(GroupedNorm, nn.GroupNorm):
    """Group norm that saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = nn.GroupNorm

    def normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    def groups_of(self, x: Tensor) -> int:
        return self.num_groups


UNBATCHED = {nn.InstanceNorm1d: 2, nn.InstanceNorm2d: 3, nn.InstanceNorm3d: 4}
"""The dimensions of one example without a batch, which torch's instance norms take too."""


@cache
def instance_norm_class(plain: Any) -> Any:
    """Return the subclass of an instance norm without running statistics that saves its input compressed."""

    def normalized(self: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.instance_norm(x, None, None, weight, bias, True, 0.0, self.eps)

    def groups_of(self: Any, x: Tensor) -> int:
        return x.shape[1]

    def forward(self: Any, x: Tensor) -> Tensor:
        if x.dim() != UNBATCHED[plain]:
            return GroupedNorm.forward(self, x)
        return GroupedNorm.forward(self, x.unsqueeze(0)).squeeze(0)

    members = {"plain": plain, "normalized": normalized, "groups_of": groups_of, "forward": forward}
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
