"""The memory-saving layers: subclasses of torch's with another ``forward``; weights, hooks and names stay as they are."""

from torch import nn

from fedact.nn.layers.activations import (
    CompressedGELU,
    CompressedHardswish,
    CompressedSiLU,
    Masked,
    MaskedHardsigmoid,
    MaskedReLU,
    MaskedReLU6,
)
from fedact.nn.layers.adaptive_pooling import PlacedAdaptiveMaxPool1d, PlacedAdaptiveMaxPool2d
from fedact.nn.layers.attention_modules import LeanAttention, known_attention, lean_class, plain_class
from fedact.nn.layers.base import CONVOLUTIONS, ChannelNorm, Swapped, has_weights, identity_class
from fedact.nn.layers.batch_norm import CompressedBatchNorm1d, CompressedBatchNorm2d
from fedact.nn.layers.checkpointed import RecomputedSequential
from fedact.nn.layers.codec import LayerCodec
from fedact.nn.layers.compressed import (
    CodecLayer,
    CompressedConv1d,
    CompressedConv2d,
    CompressedLinear,
)
from fedact.nn.layers.encoder_layer import LeanTransformerEncoderLayer
from fedact.nn.layers.frozen import FrozenConv1d, FrozenConv2d, eval_class, frozen_class
from fedact.nn.layers.fused import fuse
from fedact.nn.layers.low_rank import kept_low_rank, light_low_rank, plain_low_rank
from fedact.nn.layers.multihead_attention import (
    CompressedMultiheadAttention,
    CompressedOutProjection,
    LeanMultiheadAttention,
    OutProjection,
    PlainMultiheadAttention,
    batch_of,
    watch_output,
    weight_name,
)
from fedact.nn.layers.norms import (
    CompressedChannelNorm,
    CompressedGroupNorm,
    CompressedLayerNorm,
    CompressedRMSNorm,
    instance_norm_class,
    known_norm,
)
from fedact.nn.layers.padding import PADS, pad_class
from fedact.nn.layers.pooling import PlacedMaxPool2d, ShapeAdaptiveAvgPool2d, ShapeAvgPool2d
from fedact.nn.layers.pooling1d import PlacedMaxPool1d, ShapeAdaptiveAvgPool1d, ShapeAvgPool1d
from fedact.nn.layers.rematerialized import RematerializedCodec, SourceConv1d, SourceConv2d, SourceConvolution
from fedact.nn.layers.slopes import ACTIVATE, MaskedHardtanh, MaskedLeakyReLU, MaskedPReLU, smooth_class

Table = dict[type[nn.Module], type[nn.Module]]

TRAINED: Table = {
    nn.Conv1d: CompressedConv1d,
    nn.Conv2d: CompressedConv2d,
    nn.Linear: CompressedLinear,
    nn.MultiheadAttention: CompressedMultiheadAttention,
    OutProjection: CompressedOutProjection,
    nn.BatchNorm1d: CompressedBatchNorm1d,
    nn.BatchNorm2d: CompressedBatchNorm2d,
}
"""Replacements for trained layers, which save their input compressed by a method."""

SMOOTH: Table = {
    nn.Hardswish: CompressedHardswish,
    nn.SiLU: CompressedSiLU,
    nn.GELU: CompressedGELU,
    **{activation: smooth_class(activation) for activation in ACTIVATE},
    ChannelNorm: CompressedChannelNorm,
    nn.LayerNorm: CompressedLayerNorm,
    nn.GroupNorm: CompressedGroupNorm,
    nn.RMSNorm: CompressedRMSNorm,
    **{norm: instance_norm_class(norm) for norm in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)},
}
"""Replacements for activations and norms whose gradient needs their input, which is saved compressed too."""

NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
DROPOUTS = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout

PLAIN: Table = {
    **{norm: eval_class(norm) for norm in NORMS},
    **{dropout: identity_class(dropout) for dropout in DROPOUTS},
    nn.MultiheadAttention: PlainMultiheadAttention,
}
"""Replacements under every method, vanilla too: batch norm in eval mode, dropout off."""

SAVES_LESS: Table = {
    **PLAIN,
    **{norm: frozen_class(norm) for norm in NORMS},
    nn.Conv1d: FrozenConv1d,
    nn.Conv2d: FrozenConv2d,
    nn.ReLU: MaskedReLU,
    nn.ReLU6: MaskedReLU6,
    nn.Hardtanh: MaskedHardtanh,
    nn.LeakyReLU: MaskedLeakyReLU,
    nn.PReLU: MaskedPReLU,
    nn.Hardsigmoid: MaskedHardsigmoid,
    **{pad: pad_class(pad) for pad in PADS},
    nn.AdaptiveAvgPool1d: ShapeAdaptiveAvgPool1d,
    nn.AvgPool1d: ShapeAvgPool1d,
    nn.MaxPool1d: PlacedMaxPool1d,
    nn.AdaptiveMaxPool1d: PlacedAdaptiveMaxPool1d,
    nn.AdaptiveAvgPool2d: ShapeAdaptiveAvgPool2d,
    nn.AvgPool2d: ShapeAvgPool2d,
    nn.MaxPool2d: PlacedMaxPool2d,
    nn.AdaptiveMaxPool2d: PlacedAdaptiveMaxPool2d,
    nn.MultiheadAttention: LeanMultiheadAttention,
    nn.TransformerEncoderLayer: LeanTransformerEncoderLayer,
}
"""Replacements for all other layers: same gradient, smaller saved tensors."""

SOURCES: Table = {FrozenConv1d: SourceConv1d, FrozenConv2d: SourceConv2d}
"""Replacements for frozen convolutions from whose saved input others are made again."""

LOW_RANK: dict[str, Table] = {
    name: {kind: make(kind) for kind in (*CONVOLUTIONS, nn.Linear)}
    for name, make in (("plain", plain_low_rank), ("kept", kept_low_rank), ("light", light_low_rank))
}
"""Replacements for layers with a low-rank update: in plain PyTorch, with their input kept by a method, and without it."""

__all__ = [
    "CONVOLUTIONS",
    "DROPOUTS",
    "LOW_RANK",
    "NORMS",
    "PLAIN",
    "SAVES_LESS",
    "SMOOTH",
    "SOURCES",
    "TRAINED",
    "CodecLayer",
    "LayerCodec",
    "LeanAttention",
    "LeanMultiheadAttention",
    "Masked",
    "OutProjection",
    "RecomputedSequential",
    "RematerializedCodec",
    "SourceConvolution",
    "Swapped",
    "Table",
    "batch_of",
    "fuse",
    "has_weights",
    "identity_class",
    "known_attention",
    "known_norm",
    "lean_class",
    "plain_class",
    "watch_output",
    "weight_name",
]
