"""Settings of a client's training: its batches, its augmentation and its SGD."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedact.config.settings.base import Positive, Rate, Settings, Share, Switch


class TrainingSettings(Settings):
    """A client's training in a round."""

    title: ClassVar[str] = "training"

    local_epochs: Positive = Field(2, description="epochs of a client's training in a round")
    batch_size: Positive = Field(16, description="examples in an optimizer step")
    crop: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels a side of the random squares that clients train on [whole images]"
    )
    flip: Switch = Field(False, description="flip clients' training images at random")
    lr: Rate | Literal["auto"] = Field(
        "auto", description="learning rate of the first round after the warm-up; auto: by trial on the server's examples"
    )
    schedule: Literal["constant", "cosine", "poly"] = Field("cosine", description="constant, cosine or poly learning rate")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(0, description="first rounds, over which the learning rate rises")
    momentum: Share = Field(0.9, description="momentum of the clients' SGD")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(1e-4, description="weight decay of that SGD")
    clip_norm: Rate = Field(2.0, description="largest norm of a gradient; longer ones are clipped")
