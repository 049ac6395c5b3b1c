"""Settings of the model: which network, and the weights it starts from."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from fedact.config.paths import expanded
from fedact.config.settings.base import Positive, Settings

WeightsName = Annotated[str, AfterValidator(lambda name: str(expanded(name)) if name.startswith("~") else name)]
"""A word, or the file of weights."""


class ModelSettings(Settings):
    """The network and its initial weights."""

    title: ClassVar[str] = "model"

    model: str = Field("mobilenet_v2", description="network to fine-tune")
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(
        None, description="width multiplier [0.35 when fedact pretrains digits or synthetic, else 1]"
    )
    weights: WeightsName = Field("pretrain", description="initial weights: none, pretrain (here, once), imagenet or a file")
    pretrain_epochs: Positive = Field(12, description="epochs of --weights pretrain")
    pretrain_from: WeightsName = Field("none", description="initial weights of --weights pretrain: none, imagenet or a file")
    head_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs of the head alone on the server's examples, before the first round"
    )
