"""Attention modules of torchvision and timm, around the attention that keeps no scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.attention import Attention, attend, differentiable
from fedact.nn.layers.base import Saving, Swapped, made_class
from fedact.nn.layers.compressed import CompressedLinear
from fedact.nn.layers.function import is_recorded
from fedact.nn.layers.fused import is_own
from fedact.nn.layers.multihead_attention import OFF, source_of
from fedact.nn.layers.windows import shift_mask
from fedact.torch_private import is_observed

LARGEST_LOGARITHM = log(100)
"""Of the factor of cosines in Swin version 2."""


class LeanAttention(Saving):
    """Attention with a projection ``qkv`` and an output projection ``proj``, which are called as the layers they are."""

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    keeps_all: ClassVar[bool] = False

    def attended(self, x: Tensor, attention: Attention, bias: Tensor | None = None) -> Tensor:
        """Return the attention over the projection of x; bias: in place of the projection's own."""
        layer = self.qkv
        bias = layer.bias if bias is None else bias
        with in_place_of_bias(layer, bias):
            y = layer(x)
        if self.keeps_all:
            return differentiable(y, attention)
        known = type(layer) in (nn.Linear, CompressedLinear) and not is_observed(layer) and is_own(layer)
        return attend(y, attention, source_of(vars(layer).get("codec"), x, layer.weight, bias) if known else None)


@contextmanager
def in_place_of_bias(layer: nn.Module, bias: Tensor | None) -> Iterator[None]:
    """Within this context, let a layer compute with this bias."""
    # A module's own attributes are found before its parameters.
    if bias is None or bias is layer.bias:
        yield
        return
    vars(layer)["bias"] = bias
    try:
        yield
    finally:
        del vars(layer)["bias"]


class LeanShiftedWindowAttention(LeanAttention):
    """torchvision's attention in shifted windows with a relative position bias (Swin)."""

    window_size: list[int]
    shift_size: list[int]

    def forward(self, x: Tensor) -> Tensor:
        trained = [p for name, p in self.named_parameters() if not name.startswith(("qkv.", "proj."))]  # type: ignore[attr-defined]
        if is_recorded(*trained):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        height, width = x.shape[1:3]
        window = self.window_size[0], self.window_size[1]
        padded = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        size = padded.shape[1], padded.shape[2]
        # Where a window is as large as the map, there is nothing to shift.
        shift = [0 if side >= whole else by for side, whole, by in zip(window, size, self.shift_size, strict=True)]
        padded = torch.roll(padded, (-shift[0], -shift[1]), (1, 2)) if any(shift) else padded

        @torch.no_grad()
        def masks() -> Tensor:
            bias: Tensor = self.get_relative_position_bias()  # type: ignore[attr-defined]
            return bias + shift_mask(size, window, shift, bias) if any(shift) else bias

        bias: Tensor | None = self.qkv.bias
        scale = getattr(self, "logit_scale", None)
        if scale is not None:
            scale = scale.clamp(max=LARGEST_LOGARITHM).exp()
            if bias is not None:
                # Version 2 has no bias of the keys, whatever its parameter is.
                queries, keys, values = bias.chunk(3)
                bias = torch.cat((queries, torch.zeros_like(keys), values))
        y = self.attended(padded, Attention(self.num_heads, masks, window, scale), bias)
        y = torch.roll(y, (shift[0], shift[1]), (1, 2)) if any(shift) else y
        y = y[:, :height, :width].contiguous()
        return self.proj(y)  # type: ignore[no-any-return]


class LeanTimmAttention(LeanAttention):
    """timm's attention, without norms of queries and keys, and ungated."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            return super().forward(x, attn_mask, is_causal)  # type: ignore[misc, no-any-return]
        return self.proj(self.attended(x, Attention(self.num_heads)))  # type: ignore[no-any-return]


class LeanTimmWindowAttention(LeanAttention):
    """timm's attention inside windows with a relative position bias (Swin); the windows are the examples."""

    window_area: int

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if is_recorded(self.relative_position_bias_table):  # type: ignore[attr-defined]
            return super().forward(x, mask)  # type: ignore[misc, no-any-return]

        @torch.no_grad()
        def masks() -> Tensor:
            bias: Tensor = self._get_rel_pos_bias()  # type: ignore[attr-defined]
            return bias if mask is None else bias + mask.unsqueeze(1)

        return self.proj(self.attended(x, Attention(self.num_heads, masks)))  # type: ignore[no-any-return]


class PlainAttention(Swapped):
    """A plain attention module whose dropout is a number, and off."""

    dropout = OFF
    attention_dropout = OFF


class PlainShiftedWindowAttention(PlainAttention, LeanShiftedWindowAttention):
    """torchvision's plain attention, which calls its projections where they are more than linear layers.

    Its own forward reads their weights alone: what LoRA adds would be left out.
    """

    keeps_all: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        if type(self.qkv) is nn.Linear and type(self.proj) is nn.Linear:
            return self.plain.forward(self, x)  # type: ignore[no-any-return]
        return super().forward(x)


KNOWN: dict[tuple[str, str], type[LeanAttention]] = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): LeanShiftedWindowAttention,
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): LeanShiftedWindowAttention,
    ("timm.layers.attention", "Attention"): LeanTimmAttention,
    ("timm.models.swin_transformer", "WindowAttention"): LeanTimmWindowAttention,
}
"""What replaces attention modules, by module and name: the packages need not be loaded for them."""


def known_attention(module: nn.Module) -> bool:
    """Tell whether a plain module is attention with the layers ``qkv`` and ``proj`` that ``lean_class`` replaces."""
    kind = type(module)
    if (kind.__module__, kind.__name__) not in KNOWN:
        return False
    # timm's may have norms of queries and keys, or a gate.
    others = (getattr(module, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    return all(other is None or isinstance(other, nn.Identity) for other in others)


@cache
def lean_class(plain: Any) -> Any:
    """Return the subclass of a known attention module that keeps no scores."""
    bases = (KNOWN[plain.__module__, plain.__name__], plain)
    return made_class(lean_class, plain, f"Lean{plain.__name__}", bases, plain=plain)


@cache
def plain_class(plain: Any) -> Any:
    """Return the subclass of a known attention module whose dropout is off."""
    shifted = issubclass(KNOWN[plain.__module__, plain.__name__], LeanShiftedWindowAttention)
    base = PlainShiftedWindowAttention if shifted else PlainAttention
    return made_class(plain_class, plain, f"Plain{plain.__name__}", (base, plain), plain=plain)
