"""A plan: what a client does under its budget, as a frozen value that is JSON outside."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedact.errors import ConfigError

Count = Annotated[int, Field(ge=0, strict=True)]
"""A number of bytes, examples or layers."""


@dataclass(frozen=True)
class Kept:
    """One kept tensor: the layer whose input it is, its shape in a micro-batch, its method and its cap.

    expected_error: what keeping it so adds to the plan's own; None where it was not measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    shape: tuple[Count, ...]
    method: str
    cap_bytes: Count
    expected_error: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a client does under its budget; all bytes were measured on the server for a full micro-batch.

    method: as it was asked for. status: ``ok``, ``head-only`` or ``skipped``, with the reason where something gave way.
    layers: trained convolutions. vanilla_saved_bytes: what plain training of the same layers would keep for a whole batch.
    fixed: whether every step of the same shape takes the same bytes of the budget's scope, whatever the data.
    weight, gradient and optimizer bytes: the device's other memory. least_bytes: what the least step would need, if skipped.
    prefix_chunk: how many examples at a time the frozen part before the first trained layer is run on; 0 for all at once.
    expected_error: the sum over the trained layers of ||g' - g||^2 / ||g||^2, g the exact gradient and g' the plan's, on the
    server's examples; None where it was not measured. slowdown: a step's time relative to plain training's at once, None
    where none was asked for.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    method: str
    status: Literal["ok", "head-only", "skipped"]
    budget_bytes: Count | None
    scope: Literal["saved", "peak"]
    batch_size: Count
    micro_batch: Count
    layers: Count
    kept: tuple[Kept, ...]
    saved_bytes: Count | None
    state_bytes: Count | None
    peak_bytes: Count | None
    paper_bytes: Count | None
    vanilla_saved_bytes: Count | None
    weight_bytes: Count
    gradient_bytes: Count
    optimizer_bytes: Count
    fixed: bool
    reason: str | None = None
    least_bytes: Count | None = None
    prefix_chunk: Count = 0
    expected_error: float | None = None
    slowdown: float | None = None

    @property
    def error_per_layer(self) -> float | None:
        """The mean of the layers' expected errors, which tells deeper plans from worse ones."""
        return None if self.expected_error is None or not self.kept else self.expected_error / len(self.kept)

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return the plan behind ``to_json``; raises ConfigError where the text is no plan."""
        try:
            return _reader().validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"not a plan: {where + ' ' if where else ''}{first['msg']}") from None


@cache
def _reader() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)
