"""A layer of PyTorch's encoder, run module by module: in its own forward hooks, codecs and tracers may see none of them."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from fedact.nn.layers.activations import MaskedReLU
from fedact.nn.layers.base import Saving


def encoder_layer(layer: nn.TransformerEncoderLayer, x: Any, activation: Any, **masks: Any) -> Any:
    """Return what a layer computes of x by calling its modules; masks: for its attention."""

    def attended(x: Any) -> Any:
        return layer.dropout1(layer.self_attn(x, x, x, need_weights=False, **masks)[0])

    def fed(x: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(activation(layer.linear1(x)))))

    if layer.norm_first:
        x = x + attended(layer.norm1(x))
        return x + fed(layer.norm2(x))
    x = layer.norm1(x + attended(x))
    return layer.norm2(x + fed(x))


class LeanTransformerEncoderLayer(Saving, nn.TransformerEncoderLayer):
    """A layer of PyTorch's encoder that calls its modules; its ReLU saves one bit an element."""

    plain: ClassVar[type[nn.Module]] = nn.TransformerEncoderLayer

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        activation: Any = self.activation
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        y: Tensor = encoder_layer(self, src, RELU if activation is F.relu else activation, **masks)
        return y


RELU = MaskedReLU()
"""In place of the function, which keeps its output."""
