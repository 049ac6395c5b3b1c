"""Settings of the memory budget: of how many bytes, of which bytes, and what a plan may cost in time."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_serializer, field_validator

from fedact.config.budgets import UNBOUNDED, Budget, parse_budget
from fedact.config.devices import read_devices
from fedact.config.paths import UserPath
from fedact.config.settings.base import Settings


class BudgetSettings(Settings):
    """What a client's memory bounds, and when plans are made."""

    title: ClassVar[str] = "budget"

    devices: UserPath | None = Field(
        None, description="TOML file of devices for --budget [those that ship with fedact, see --list]"
    )
    budget: Budget = Field(
        parse_budget("512KB"),
        description="activation memory of a client: a size, none, a device, shares of the clients such as "
        "256KB:10,512KB:6,esp32-s3:4, or a list with one for each client such as 256KB/none/512KB",
    )
    scope: Literal["saved", "peak"] = Field(
        "peak", description="bytes that the budget bounds: peak (all that is alive) or saved (kept for the backward pass)"
    )
    max_slowdown: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="limit on a batch's time under a plan, relative to plain training's [none]"
    )
    replan: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = Field(
        "auto",
        description="rounds before which plans are renewed: auto (2, 3, 5, 9, ...), N (every N-th), never",
    )

    @field_validator("devices")
    @classmethod
    def _devices_are_readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            read_devices(value)
        return value

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_of_text(cls, value: Any, info: ValidationInfo) -> Budget:
        # What is wrong with the devices is said already.
        return parse_budget(str(value).strip(), info.data["devices"]) if "devices" in info.data else UNBOUNDED

    @field_serializer("budget")
    def _text_of_budget(self, budget: Budget) -> str:
        return budget.text
