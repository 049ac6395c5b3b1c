"""PyTorch's own attention, around the attention that keeps no scores."""

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fedact.compression.exact import Exact
from fedact.compression.matrix_product import MatrixProduct
from fedact.compression.method import Compressed
from fedact.nn.layers.attention import Attention, Masks, Source, attend, no_mask
from fedact.nn.layers.base import Saving, Swapped
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import CodecLayer, CompressedLinear, input_compressed
from fedact.nn.layers.function import is_recorded, runs_plain

OFF = property(lambda _: 0.0, lambda *_: None)
"""The probability of a dropout that is off, whatever it is set to."""

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
        for watch in vars(self).get("watchers", ()):
            watch(y)
        attended = attend(y, attention, source_of(vars(self).get("codec"), x, weight, bias))
        del y
        y = self.out_proj(attended)
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


def watch_output(layer: nn.Module, watch: Callable[[Tensor], None]) -> Callable[[], None]:
    """Let a function see what a layer computes with its weight, and return what ends that; attention projects inside."""
    if not isinstance(layer, LeanMultiheadAttention):
        return layer.register_forward_hook(lambda _, __, output: watch(output)).remove
    watchers = vars(layer).setdefault("watchers", [])
    watchers.append(watch)
    return lambda: watchers.remove(watch)


def batch_of(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer is called with, examples first: attention may be called with tokens first."""
    return x.transpose(0, 1) if isinstance(layer, nn.MultiheadAttention) and not layer.batch_first and x.dim() == 3 else x


def weight_name(layer: nn.Module) -> str:
    """Return the name of the parameter that is a layer's weight."""
    return "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"


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
