"""Settings of the method: what stands for the kept activations, and what of the network is trained."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from fedact.config.settings.base import Settings, Switch
from fedact.config.updates import WHOLE, update_name


class MethodSettings(Settings):
    """How activations are kept, and which layers are trained."""

    title: ClassVar[str] = "method"

    method: tuple[str, ...] = Field(
        ("hosvd",), min_length=1, description="NAME[:key=value,...], see --list; repeat to compare"
    )
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="trained convolutions from the end; 0 is the head alone"
    )
    recompute: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="how many convolutions back a saved input may be, for others to be made again from it instead of saved; "
        "auto: as the budget asks; a method's own derive=N stays",
    )
    update: str = Field(
        WHOLE,
        description="what of these layers is trained: layers (whole), bias, lora:rank=4 (low-rank updates), see --list",
    )
    train_norm: Switch = Field(False, description="train the scales and shifts of batch norms too")

    @field_validator("method", mode="before")
    @classmethod
    def _one_method_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("update")
    @classmethod
    def _update_is_known(cls, value: str) -> str:
        return update_name(value)

    @field_validator("method")
    @classmethod
    def _no_method_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each method may be given once")
        return value
