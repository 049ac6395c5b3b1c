"""Settings of the method: what stands for the kept activations, and what of the network is trained."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from fedact.config.baselines import BASELINES
from fedact.config.errors import unknown
from fedact.config.settings.base import Settings, Switch
from fedact.config.updates import WHOLE, update_name


class MethodSettings(Settings):
    """How activations are kept, and which layers are trained."""

    title: ClassVar[str] = "method"

    method: tuple[str, ...] = Field(
        ("hosvd",), min_length=1, description="NAME[:key=value,...], see --list; repeat to compare"
    )
    baseline: tuple[str, ...] = Field(
        (), description="rows to compare with: " + "; ".join(f"{name} ({what})" for name, what in BASELINES.items())
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
    train_norm: Switch = Field(False, description="train the scales and shifts of norms too")

    @field_validator("method", "baseline", mode="before")
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

    @field_validator("baseline")
    @classmethod
    def _known_baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [name for name in value if name not in BASELINES]:
            raise unknown("baseline", strange[0], BASELINES)
        if len(set(value)) < len(value):
            raise ValueError("each baseline may be given once")
        return value
