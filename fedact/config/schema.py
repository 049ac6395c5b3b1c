"""One run as a frozen value: defaults < file < flags, everything checked before anything starts."""

import os
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fedact.config.code import code_label
from fedact.config.hub import hub_label
from fedact.config.natural import NATURAL, natural_clients
from fedact.config.paths import cache_folder, expanded
from fedact.config.settings.base import Settings
from fedact.config.settings.budget import BudgetSettings
from fedact.config.settings.data import OF_SEGMENTATION, DataSettings
from fedact.config.settings.fleet import FleetSettings
from fedact.config.settings.method import MethodSettings
from fedact.config.settings.model import ModelSettings
from fedact.config.settings.running import RunningSettings
from fedact.config.settings.training import TrainingSettings
from fedact.config.updates import WHOLE

GROUPS: tuple[type[Settings], ...] = (
    FleetSettings, BudgetSettings, MethodSettings, ModelSettings, DataSettings, TrainingSettings, RunningSettings,
)  # fmt: skip
SETTINGS = tuple(name for group in GROUPS for name in group.model_fields)
"""The fields of Config that a user sets: each has a flag."""

USUAL_LR = {"classification": 0.03, "segmentation": 0.01}
"""The learning rate, by task, where no trial chooses one."""


# The fields of the last base come first.
class Config(RunningSettings, TrainingSettings, DataSettings, ModelSettings, MethodSettings, BudgetSettings, FleetSettings):
    """What one run does. Fields left at None are filled in by the data set or the weights (see experiment.py).

    >>> Config(clients=4, budget="1KB").client_budgets()
    (1000, 1000, 1000, 1000)
    """

    model_config = ConfigDict(defer_build=False)

    code: dict[str, str] | None = Field(
        None, description="SHA-256 of each file of the user's own code, by the name of that code; filled in by a run"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, settings: Any) -> Any:
        segments = isinstance(settings, dict) and settings.get("task") == "segmentation"
        return {**OF_SEGMENTATION, **settings} if segments else settings

    @model_validator(mode="before")
    @classmethod
    def _as_many_clients_as_there_are(cls, settings: Any) -> Any:
        natural = isinstance(settings, dict) and str(settings.get("partition", "")).strip().partition(":")[0] == NATURAL
        return {"clients": None, **settings} if natural else settings

    @field_validator("*", mode="before")
    @classmethod
    def _sensible(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no setting")
        if isinstance(value, str | Path):
            if "\0" in str(value):
                raise ValueError("a text must have no null byte")
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise ValueError("a text must be Unicode") from None
        return value

    @model_validator(mode="after")
    def _seeds_fit(self) -> "Config":
        if self.seed + self.seeds > 2**32:
            raise ValueError(f"the last of {self.seeds} seeds from {self.seed} must lie below 2^32")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Config":
        if self.warmup_rounds and self.warmup_rounds >= self.rounds:
            raise ValueError(f"--warmup-rounds {self.warmup_rounds} must be fewer than the {self.rounds} rounds (--rounds)")
        return self

    @model_validator(mode="after")
    def _dealt_to_a_number_of_clients(self) -> "Config":
        if self.clients is None and natural_clients(self.partition) is None:
            raise ValueError("--clients is None: it is a number where the partition is dealt")
        return self

    @model_validator(mode="after")
    def _norms_are_trained_with_layers(self) -> "Config":
        if self.train_norm and self.update != WHOLE:
            raise ValueError(f"--train-norm is for --update {WHOLE}, not for --update {self.update}")
        return self

    @model_validator(mode="after")
    def _a_budget_for_each(self) -> "Config":
        listed = len(self.budget.sizes)
        if self.budget.shares is None and self.clients not in (None, listed):
            raise ValueError(f"--budget lists {listed} budgets for {self.clients} clients")
        return self

    @model_validator(mode="after")
    def _address_needs_ray(self) -> "Config":
        if self.ray_address is not None and self.runtime != "ray":
            raise ValueError(f"--ray-address is for --runtime ray, not for --runtime {self.runtime}")
        return self

    @model_validator(mode="after")
    def _baselines_are_simulated(self) -> "Config":
        if self.baseline and self.runtime == "flower":
            raise ValueError(f"--baseline {self.baseline[0]} is for a simulation, not for --runtime flower")
        return self

    @model_validator(mode="after")
    def _workers_are_local(self) -> "Config":
        if self.runtime != "local" and self.workers not in (1, "auto"):
            raise ValueError(f"--workers {self.workers} is for --runtime local, not for --runtime {self.runtime}")
        return self

    def data_path(self) -> Path:
        """Return where the data lies."""
        default = os.environ.get("FEDACT_DATA") or cache_folder() / "data"
        return expanded(self.data_dir or default)

    @property
    def data_name(self) -> str:
        """What the data is called: a file or a folder of the user's own by its name."""
        return self.data_path().name if self.dataset in ("npz", "folder") else code_label(hub_label(self.dataset))

    @property
    def model_name(self) -> str:
        """What the network is called: one of the user's own without the folders of its file."""
        return code_label(self.model)

    @property
    def data_title(self) -> str:
        """What the data is called, and the size of its pictures where these have one."""
        return self.data_name if self.resolution is None else f"{self.data_name} at {self.resolution} px"

    @property
    def usual_lr(self) -> float:
        """The given learning rate, or the task's usual one where it is left to a trial."""
        return USUAL_LR[self.task] if self.lr == "auto" else self.lr

    @property
    def fleet_size(self) -> int:
        """The number of clients, 0 as long as only the data knows it."""
        return self.clients or 0

    def client_budgets(self) -> tuple[int | None, ...]:
        """Return each client's budget in bytes, None for no bound."""
        return self.budget.by_client(self.fleet_size, self.seed)

    def to_toml(self) -> str:
        """Return the whole config; reading it back gives an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
