"""Layer norm over the channels of a picture, as UPerNet's decoder has it."""

from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over dimension 1 of (examples, channels, height, width)."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
