"""A plan: what a client does under its budget, as a frozen value that is JSON outside."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedact.config.errors import ConfigError

Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
"""A number of bytes, examples or layers."""
Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Kept:
    """One kept tensor: the layer whose input it is, its shape in a micro-batch, its method and its cap.

    expected_error: what keeping it so adds to the plan's own; None where it was not measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: tuple[Count, ...]
    method: str
    cap_bytes: Count
    expected_error: Measure | None = None


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
    where none was asked for. step_flops: what a whole batch takes from the first trained layer on, forward and backward,
    vanilla_step_flops: what plain training of the same layers takes (``stopwatch.count_flops`` says what counts). by_layer:
    saved bytes without state by the module that keeps them, "" for the loss.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

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
    expected_error: Measure | None = None
    slowdown: Measure | None = None
    step_flops: Count | None = None
    vanilla_step_flops: Count | None = None
    by_layer: tuple[tuple[str, Count], ...] = ()

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
            return _sensible(_reader().validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"not a plan: {where + ' ' if where else ''}{first['msg']}") from None


Plans = dict[str, Plan]
"""The plans of one method, by their keys in plans.json."""


def plan_key(budget: int | None, number: int = 1) -> str:
    """Return the name in plans.json of a budget's plan: "512000" of the first one, "512000@4" of one made before round 4."""
    name = "none" if budget is None else str(budget)
    return name if number <= 1 else f"{name}@{number}"


def read_key(key: str) -> tuple[int | None, int]:
    """Return the budget and the first round behind ``plan_key``; raises ConfigError for what is no key."""
    match = re.fullmatch(r"(none|[0-9]{1,19})(?:@([2-9]|[1-9][0-9]{1,9}))?", key)
    if match is None:
        raise ConfigError(f"{key!r} names no plan: it is a budget in bytes or none, with @ROUND where it was made again")
    return None if match[1] == "none" else int(match[1]), int(match[2] or 1)


def plans_json(plans: dict[str, Plans]) -> str:
    """Return plans.json: by method, and by budget in bytes with the round where one was made again."""
    by_method = {
        method: {key: json.loads(plan.to_json()) for key, plan in by_key.items()} for method, by_key in plans.items()
    }
    return json.dumps(by_method, indent=1) + "\n"


def plans_from_json(by_method: Any) -> dict[str, Plans]:
    """Return the plans behind ``plans_json``; raises ConfigError for what is no plan, or has another's key."""
    if not isinstance(by_method, Mapping) or not all(isinstance(by_key, Mapping) for by_key in by_method.values()):
        raise ConfigError("it holds no plans by method and budget")
    plans = {m: {key: Plan.from_json(json.dumps(plan)) for key, plan in by.items()} for m, by in by_method.items()}
    for by_key in plans.values():
        for key, plan in by_key.items():
            budget, first = read_key(key)
            if (budget, key) != (plan.budget_bytes, plan_key(budget, first)):
                raise ConfigError(f"the plan {key!r} is for {plan.budget_bytes} bytes")
    return plans


def _sensible(plan: Plan) -> Plan:
    """Return the plan, or raise ConfigError where it trains on no examples."""
    if plan.status == "skipped":
        return plan
    if not 1 <= plan.micro_batch <= plan.batch_size:
        raise ConfigError(f"not a plan: its micro-batch is from 1 to {plan.batch_size}, not {plan.micro_batch}")
    return plan


@cache
def _reader() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)
