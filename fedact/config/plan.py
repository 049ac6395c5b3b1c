"""A plan: what a client does under its budget, as a frozen value that is JSON outside."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedact.config import spec
from fedact.config.budgets import size_text
from fedact.config.choice import Count, Measure, Rate, Trial
from fedact.config.errors import ConfigError
from fedact.config.updates import WHOLE


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
    weight, gradient, optimizer and copy bytes: the device's other memory, copies being the received weights that a strategy
    or privacy keeps beside those being trained. least_bytes: what the least step would need, if skipped.
    recompute: how many convolutions back, at most, an input that is not saved is made again from; 0 where nothing is.
    prefix_chunk: how many examples at a time the frozen part before the first trained layer is run on; 0 for all at once.
    room_bytes: for the wide maps of a block that runs in streams (see docs/streams.md); None where none does.
    tiles: along each axis of the patches in which that part's first stages run, so that their maps never exist whole; 0 for
    whole maps.
    expected_error: the sum over the trained layers of ||g' - g||^2 / ||g||^2, g the exact gradient and g' the plan's, on the
    server's examples; None where it was not measured. slowdown: a step's time relative to plain training's at once, None
    where none was asked for. step_flops: what a whole batch takes from the first trained layer on, forward and backward,
    vanilla_step_flops: what plain training of the same layers takes (see ``measure.cost``). by_layer:
    saved bytes without state by the module that keeps them, "" for the loss. working_bytes: how far the peak is raised by
    what methods work with while they compress and decode, where that may follow the data. lr: the learning rate of the first
    round after the warm-up, given or chosen; None where the plan is of no run. trials: of the candidates among which layers
    and lr were chosen; none where both were given, or nothing could be tried. floor_bytes: of one image, see
    ``measure.floor``; batch_bytes: of a micro-batch's raw images and labels; both None in plans from before there were any.
    update: what of the trained layers is trained; those that need no input for it are not in ``kept``. counted: what
    ``layers`` counts: "convolutions", or "layers" where linear ones are among them. example_norms: whether scales and shifts
    of layer, group and instance norms after the first trained layer are trained; it is written where they are.

    >>> import fedact, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 2))
    >>> example = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> plan = fedact.make_plan(model, budget="16KB", example=example, method="exact", layers=1)
    >>> plan.status, plan.micro_batch, plan.peak_bytes <= 16_000
    ('ok', 4, True)
    >>> fedact.Plan.from_json(plan.to_json()) == plan
    True
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
    room_bytes: Count | None = None
    recompute: Count = 0
    tiles: Count = 0
    expected_error: Measure | None = None
    slowdown: Measure | None = None
    step_flops: Count | None = None
    vanilla_step_flops: Count | None = None
    by_layer: tuple[tuple[str, Count], ...] = ()
    copy_bytes: Count = 0
    working_bytes: Count = 0
    lr: Rate | None = None
    trials: tuple[Trial, ...] = ()
    floor_bytes: Count | None = None
    batch_bytes: Count | None = None
    update: str = WHOLE
    counted: str = "convolutions"
    example_norms: bool = False

    @property
    def error_per_layer(self) -> float | None:
        """The mean of the layers' expected errors, which tells deeper plans from worse ones."""
        return None if self.expected_error is None or not self.kept else self.expected_error / len(self.kept)

    @property
    def device_bytes(self) -> int | None:
        """The device's whole memory in the largest step: see ``device_bytes_at``."""
        return self.device_bytes_at(self.peak_bytes)

    def device_bytes_at(self, peak_bytes: int | None) -> int | None:
        """Return a peak with the trained weights, gradients, optimizer state, a strategy's copies and the raw micro-batch.

        Frozen weights may lie in flash. None where the peak or the micro-batch's bytes are not known.
        """
        if peak_bytes is None or self.batch_bytes is None:
            return None
        trained_weights = self.gradient_bytes
        return peak_bytes + trained_weights + self.gradient_bytes + self.optimizer_bytes + self.copy_bytes + self.batch_bytes

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return _written(self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return the plan behind ``to_json``; raises ConfigError where the text is no plan."""
        return _read(text)


_READER = TypeAdapter(Plan)


# A plan is written for every client of a round, and read by each.
@lru_cache(maxsize=128)
def _written(plan: Plan) -> str:
    fields = asdict(plan)
    if not plan.example_norms:  # what a plan without them weighs stays the same
        del fields["example_norms"]
    return json.dumps(fields)


@lru_cache(maxsize=128)
def _read(text: str) -> Plan:
    try:
        plan = _READER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"not a plan: {where + ' ' if where else ''}{first['msg']}") from None
    if plan.status != "skipped" and not 1 <= plan.micro_batch <= plan.batch_size:
        raise ConfigError(f"not a plan: its micro-batch is from 1 to {plan.batch_size}, not {plan.micro_batch}")
    return plan if "recompute" in json.loads(text) else replace(plan, recompute=_recompute_in_names(plan))


def _recompute_in_names(plan: Plan) -> int:
    """Return the recompute of a plan from when it stood in the names of the methods; transform's own was 2 then."""
    named = [spec.split(kept.method) for kept in plan.kept]
    found = [settings.get("derive", "2" if name == "transform" else "0") for name, settings in named]
    return max((int(value) for value in found if value.isdecimal()), default=0)


@dataclass(frozen=True)
class PlanKey:
    """Which of a method's plans: its budget in bytes, None for no bound, and the first round it holds in, from 1."""

    budget_bytes: int | None
    first_round: int = 1

    def __str__(self) -> str:
        """Return the name in plans.json: ``512000`` of a budget's first plan, ``512000@4`` of one made before round 4."""
        return size_text(self.budget_bytes) + (f"@{self.first_round}" if self.first_round > 1 else "")

    @classmethod
    def parse(cls, text: str) -> "PlanKey":
        """Return the key behind a name in plans.json; raises ConfigError for what is none."""
        match = re.fullmatch(r"(none|0|[1-9][0-9]{0,18})(?:@([2-9]|[1-9][0-9]{1,9}))?", text)
        if match is None:
            raise ConfigError(
                f"{text!r} names no plan: it is a budget in bytes or none, with @ROUND where it was made again"
            )
        return cls(None if match[1] == "none" else int(match[1]), int(match[2] or 1))


Plans = dict[PlanKey, Plan]
"""The plans of one method."""


def plans_json(plans: dict[str, Plans]) -> str:
    """Return plans.json: by method, and by budget in bytes with the round where one was made again."""
    by_method = {m: {str(key): json.loads(plan.to_json()) for key, plan in by.items()} for m, by in plans.items()}
    return json.dumps(by_method, indent=1) + "\n"


def plans_from_json(by_method: Any) -> dict[str, Plans]:
    """Return the plans behind ``plans_json``; raises ConfigError for what is no plan, or has another's key."""
    if not isinstance(by_method, Mapping) or not all(isinstance(by_key, Mapping) for by_key in by_method.values()):
        raise ConfigError("it holds no plans by method and budget")
    plans: dict[str, Plans] = {method: {} for method in by_method}
    for method, by_key in by_method.items():
        for text, row in by_key.items():
            key, plan = PlanKey.parse(text), Plan.from_json(json.dumps(row))
            if key.budget_bytes != plan.budget_bytes:
                raise ConfigError(f"the plan {text!r} is for {plan.budget_bytes} bytes")
            plans[method][key] = plan
    return plans
