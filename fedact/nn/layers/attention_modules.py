"""Attention modules of PyTorch, torchvision and timm around the attention that keeps no scores."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fedact.compression.exact import Exact
from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.method import Compressed
from fedact.nn.layers.attention import Attention, Masks, Source, attend, no_mask
from fedact.nn.layers.base import Saving, Swapped, made_class
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import CodecLayer, CompressedLinear, input_compressed
from fedact.nn.layers.function import is_recorded, runs_plain
from fedact.nn.layers.fused import is_layer_itself
from fedact.nn.layers.windows import shift_mask
from fedact.torch_private import is_observed

OFF = property(lambda _: 0.0, lambda *_: None)
"""The probability of a dropout that is off, whatever it is set to."""

LARGEST_LOGARITHM = log(100)
"""Of the factor of cosines in Swin version 2."""

OutProjection = NonDynamicallyQuantizableLinear
"""The class of the output projection of ``nn.MultiheadAttention``."""


class CompressedOutProjection(CompressedLinear, OutProjection):
    """The output projection of ``nn.MultiheadAttention``, which saves its input compressed."""

    plain: ClassVar[type[nn.Module]] = OutProjection


def source_of(codec: LayerCodec | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Source:
    """Return what the projection of x is made again from: what the codec saved of x, or x itself where it saved nothing."""
    origin = None if codec is None else codec.provenance.origin(x)
    kept = None if origin is None or origin.chain else origin.run.take(x)
    method, compressed = kept or (Exact(), Compressed((x,)))
    return Source(method, compressed, weight, bias)


class LeanMultiheadAttention(Saving, nn.MultiheadAttention):
    """Self-attention that keeps no scores, and of its projected input nothing but that input."""

    plain: ClassVar[type[nn.Module]] = nn.MultiheadAttention
    dropout = OFF

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output, and no weights; the plain layer's where it is called for something else."""
        if reason := self._other_use(query, key, value, need_weights, attn_mask is None and is_causal):
            if is_recorded(query, key, value, *self.parameters()) and not runs_plain():
                name = type(self).plain.__name__
                warnings.warn(f"not compressed, autograd keeps what it needs: {name}, called {reason}", stacklevel=2)
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        x = query if query.dim() == 3 else query.unsqueeze(0 if self.batch_first else 1)
        x = x if self.batch_first else x.transpose(0, 1)
        attention = Attention(self.num_heads, self._masks(len(x), key_padding_mask, attn_mask))
        weight, bias = self.in_proj_weight, self.in_proj_bias
        y = self._projected(x, weight, bias)
        y = self.out_proj(attend(y, attention, source_of(vars(self).get("codec"), x, weight, bias)))
        y = y if self.batch_first else y.transpose(0, 1)
        return (y if query.dim() == 3 else y.squeeze(0 if self.batch_first else 1)), None

    def _projected(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return queries, keys and values."""
        return F.linear(x, weight, bias)

    def _other_use(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, no_causal_mask: bool) -> str:
        """Return what the layer is called for that it does plainly; nothing for self-attention without weights."""
        if key is not query or value is not query:
            return "with other keys or values than queries"
        if need_weights:
            return "with need_weights=True"
        if not self._qkv_same_embed_dim or self.bias_k is not None or self.add_zero_attn:
            return "with kdim, vdim, bias_k or add_zero_attn"
        return "with is_causal=True and no attn_mask" if no_causal_mask else "on nested tensors" if query.is_nested else ""

    def _masks(self, examples: int, padding: Tensor | None, mask: Tensor | None) -> Masks:
        """Return what makes the sum of a call's masks."""
        if padding is None and mask is None:
            return no_mask

        def masks() -> Tensor | None:
            dtype = self.in_proj_weight.dtype
            found = []
            if mask is not None:
                shape = mask.shape[-2:]
                found.append(_added(mask, dtype).view(-1, *([self.num_heads] if mask.dim() == 3 else [1]), *shape))
            if padding is not None:
                found.append(_added(padding, dtype).view(examples, 1, 1, -1).expand(-1, -1, padding.shape[-1], -1))
            return found[0] if len(found) == 1 else found[0] + found[1]

        return masks


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a mask of PyTorch's adds to the scores: where it is True, nothing is to be seen."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


class CompressedMultiheadAttention(CodecLayer, LeanMultiheadAttention):
    """Self-attention whose trained input projection saves its input compressed; queries, keys and values are made of it."""

    plain: ClassVar[type[nn.Module]] = nn.MultiheadAttention

    def _projected(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.compresses(x, weight):
            return F.linear(x, weight, bias)
        return input_compressed(x, weight, bias, self.codec, MatrixProduct())


class PlainMultiheadAttention(Swapped, nn.MultiheadAttention):
    """The plain layer with its dropout off."""

    plain: ClassVar[type[nn.Module]] = nn.MultiheadAttention
    dropout = OFF


class LeanAttention(Saving):
    """Attention with a projection ``qkv`` and an output projection ``proj``, which are called as the layers they are."""

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int

    def attended(self, x: Tensor, attention: Attention, bias: Tensor | None = None) -> Tensor:
        """Return the attention over the projection of x; bias: in place of the projection's own."""
        layer = self.qkv
        bias = layer.bias if bias is None else bias
        with in_place_of_bias(layer, bias):
            y = layer(x)
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


def is_own(layer: nn.Module) -> bool:
    """Tell whether a linear layer runs PyTorch's code or fedact's."""
    return "forward" not in vars(layer) and (type(layer) is nn.Linear or is_layer_itself(layer))


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
    return made_class(plain_class, plain, f"Plain{plain.__name__}", (PlainAttention, plain), plain=plain)
