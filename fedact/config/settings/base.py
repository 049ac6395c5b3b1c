"""What the groups of settings share: a frozen model, and the types of their fields."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Switch = Annotated[bool, Field(strict=True)]


class Settings(BaseModel):
    """Some fields of Config. title: of the group in ``--help``."""

    # Only Config is ever made: the groups alone need no validator.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    title: ClassVar[str] = ""
