"""A plan: what a client does under its budget, as a frozen value that is JSON outside."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from fedact.errors import ConfigError


@dataclass(frozen=True)
class Kept:
    """One kept tensor: the layer whose input it is, its shape in a micro-batch, its method and its cap."""

    name: str
    shape: tuple[int, ...]
    method: str
    cap_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a client does under its budget; all bytes were measured on the server for a full micro-batch.

    method: as it was asked for. status: ``ok``, ``head-only`` or ``skipped``, with the reason where something gave way.
    layers: trained convolutions. vanilla_saved_bytes: what plain training of the same layers would keep for a whole batch.
    fixed: whether every step of the same shape holds the same bytes, whatever the data.
    weight, gradient and optimizer bytes: the device's other memory. least_bytes: what the least step would need, if skipped.
    """

    method: str
    status: str
    budget_bytes: int | None
    scope: str
    batch_size: int
    micro_batch: int
    layers: int
    kept: tuple[Kept, ...]
    saved_bytes: int | None
    state_bytes: int | None
    peak_bytes: int | None
    paper_bytes: int | None
    vanilla_saved_bytes: int | None
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    fixed: bool
    reason: str | None = None
    least_bytes: int | None = None

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return the plan behind ``to_json``; raises ConfigError where the text is no plan."""
        try:
            fields: dict[str, Any] = json.loads(text)
            kept = tuple(Kept(**{**item, "shape": tuple(item["shape"])}) for item in fields.pop("kept"))
            return cls(kept=kept, **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"not a plan: {error}") from None

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The trained layers, in definition order."""
        return tuple(kept.name for kept in self.kept)
