"""Where a layer's channels are: second before a convolution, last before a linear layer."""

from torch import Tensor, nn

from fedact.compression.matrix_product import channels_second
from fedact.nn.graph import named_modules
from fedact.nn.layers import SMOOTH
from fedact.nn.layers.base import ChannelNorm
from fedact.nn.layers.norms import is_channels_first
from fedact.torch_private import InstanceNorm

CHANNELS_LAST = nn.Linear, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm
"""Layers over the last dimension."""
CHANNELS_SECOND = ChannelNorm, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, InstanceNorm
"""Layers whose channels are the second dimension."""


def layers_over_last(model: nn.Module) -> set[str]:
    """Return the names of the layers whose input's channels are its last dimension.

    An activation function has them where the layer that is defined before it has.
    """
    found, last = set[str](), False
    for name, module in named_modules(model):
        if isinstance(module, CHANNELS_SECOND) or is_channels_first(module):
            last = False
        elif isinstance(module, CHANNELS_LAST):
            last = True
        elif not isinstance(module, tuple(SMOOTH)):
            continue
        if last:
            found.add(name)
    return found


def as_methods_see(x: Tensor, over_last: bool) -> Tensor:
    """Return a view (batch, channels, *positions) of a layer's input."""
    return channels_second(x) if over_last else x
