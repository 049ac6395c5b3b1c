"""One run as a frozen value: defaults < file < flags, everything checked before anything starts."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_serializer, field_validator, model_validator

from fedact.config.budgets import UNBOUNDED, Budget, parse_budget
from fedact.config.devices import read_devices
from fedact.config.errors import as_flag
from fedact.config.faults import make_faults
from fedact.config.privacy import make_privacy
from fedact.config.sizes import parse_bytes
from fedact.config.spec import spell, spelled_settings, split
from fedact.config.strategies import make_strategy

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

OF_SEGMENTATION = {
    "model": "pspnet_mobilenet_v2", "dataset": "synthetic", "batch_size": 8, "calibration": 16, "lr": 0.01,
}  # fmt: skip
"""What is not given there."""


class Config(BaseModel):
    """What one run does. Fields left at None are filled in by the data set or the weights (see experiment.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    clients: Positive = Field(20, description="number of simulated clients")
    rounds: Annotated[int, Field(ge=0)] = Field(10, description="rounds of federated training")
    devices: Path | None = Field(
        None, description="TOML file of devices for --budget [those that ship with fedact, see --list]"
    )
    budget: Budget = Field(
        parse_budget("512KB"),
        description="activation memory of a client: a size, none, a device, shares of the clients such as "
        "256KB:10,512KB:6,esp32-s3:4, or a list with one for each client such as 256KB/none/512KB",
    )
    scope: Literal["saved", "peak"] = Field("saved", description="saved or peak: the bytes that the budget bounds")
    method: tuple[str, ...] = Field(
        ("hosvd",), min_length=1, description="NAME[:key=value,...], see --list; repeat to compare"
    )
    layers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="trained convolutions from the end; 0 is the head alone"
    )
    replan: Annotated[int, Field(ge=1)] | Literal["auto", "never"] = Field(
        "auto",
        description="rounds before which plans are renewed: auto (2, 3, 5, 9, ...), N (every N-th), never",
    )
    max_slowdown: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="limit on a batch's time under a plan, relative to plain training's [none]"
    )
    train_norm: Annotated[bool, Field(strict=True)] = Field(
        False, description="train the scales and shifts of batch norms too"
    )
    model: str = Field("mobilenet_v2", description="network to fine-tune")
    width: Annotated[float, Field(gt=0, le=4)] | None = Field(
        None, description="width multiplier [0.35 when fedact pretrains digits or synthetic, else 1]"
    )
    weights: str = Field("pretrain", description="initial weights: none, pretrain (here, once), imagenet or a file")
    pretrain_epochs: Positive = Field(12, description="epochs of --weights pretrain")
    pretrain_from: str = Field("none", description="initial weights of --weights pretrain: none, imagenet or a file")
    head_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="epochs of the head alone on the server's examples, before the first round"
    )
    task: Literal["classification", "segmentation"] = Field(
        "classification",
        description="classification (a class an image) or segmentation (a class a pixel), then with "
        + ", ".join(f"{as_flag(name)} {value}" for name, value in OF_SEGMENTATION.items()),
    )
    dataset: str = Field("digits", description="data set, see --list")
    data_dir: Path | None = Field(
        None, description="folder of the data, a file for npz [$FEDACT_DATA, then ~/.cache/fedact/data]"
    )
    max_examples: Positive | None = Field(None, description="limit on the training examples, stratified by class [all]")
    max_test_examples: Positive | None = Field(None, description="limit on the test examples, stratified by class [all]")
    calibration: Positive = Field(64, description="the server's examples for planning")
    partition: str = Field("dirichlet:alpha=0.3", description="rule that deals the examples out to the clients, see --list")
    partition_by: Literal["class", "source"] = Field(
        "class", description="label that images with masks are dealt by: their most frequent class, or their source"
    )
    void: Annotated[int, Field(ge=0, le=255)] = Field(255, description="mask value to ignore (--dataset folder)")
    resolution: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels of an image's shorter side [the weights' own, else 64]"
    )
    crop: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels a side of the random squares that clients train on [whole images]"
    )
    flip: Annotated[bool, Field(strict=True)] = Field(False, description="flip clients' training images at random")
    batch_size: Positive = Field(16, description="examples in an optimizer step")
    local_epochs: Positive = Field(2, description="epochs of a client's training in a round")
    lr: Rate = Field(0.1, description="learning rate of the first round after the warm-up")
    schedule: Literal["constant", "cosine", "poly"] = Field("cosine", description="constant, cosine or poly learning rate")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(0, description="first rounds, over which the learning rate rises")
    momentum: Share = Field(0.9, description="momentum of the clients' SGD")
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(1e-4, description="weight decay of that SGD")
    clip_norm: Rate = Field(2.0, description="largest norm of a gradient; longer ones are clipped")
    sample_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the clients that train in a round"
    )
    strategy: str = Field("fedavg", description="server's aggregation of updates, NAME[:key=value,...], see --list")
    privacy: str = Field("none", description="privacy of an update on the device, NAME[:key=value,...], see --list")
    faults: str = Field(
        "none", description="simulated faults, as shares of the clients: drop=0.1,slow=0.05,corrupt=0.01, see --list"
    )
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="seconds that a round waits for a client: simulated in a simulation, real elsewhere [no limit]"
    )
    evaluate_every: Positive = Field(
        1, description="rounds between evaluations of the global model; also before the first and after the last"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="random seed of everything")
    seeds: Positive = Field(1, description="number of runs with other seeds, from --seed upwards")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$", description="cpu or cuda")
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="threads of a client's computation [the cores, at most 4]"
    )
    runtime: Literal["local", "ray", "flower"] = Field(
        "local", description="local (this process) or ray (Ray's workers); flwr run sets flower"
    )
    ray_address: str | None = Field(None, min_length=1, description="address of a Ray cluster [a new one on this machine]")
    cache_size: str = Field(
        "1GB", description="limit on the disk cache of frozen layers' outputs, kept between runs; or none"
    )
    tensorboard: Annotated[bool, Field(strict=True)] = Field(
        False, description="write the rounds as TensorBoard scalars into the run's folder too"
    )
    out: Path | None = Field(None, description="folder of the run [runs/<time>-<dataset>-<model>]")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, settings: Any) -> Any:
        segments = isinstance(settings, dict) and settings.get("task") == "segmentation"
        return {**OF_SEGMENTATION, **settings} if segments else settings

    @field_validator("method", mode="before")
    @classmethod
    def _one_method_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _no_method_twice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("each method may be given once")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _sensible(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name not in ("train_norm", "flip", "tensorboard"):
            raise ValueError("true and false are no setting")
        if isinstance(value, str | Path):
            try:
                str(value).encode()
            except UnicodeEncodeError:
                raise ValueError("a text must be Unicode") from None
        return value

    @field_validator("strategy")
    @classmethod
    def _strategy_in_full(cls, value: str) -> str:
        return spell(split(value)[0], make_strategy(value))

    @field_validator("privacy")
    @classmethod
    def _privacy_in_full(cls, value: str) -> str:
        return spell(split(value)[0], make_privacy(value))

    @field_validator("faults")
    @classmethod
    def _faults_in_full(cls, value: str) -> str:
        return spelled_settings(make_faults(value)) or "none"

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
    def _a_budget_for_each(self) -> "Config":
        listed = len(self.budget.sizes)
        if self.budget.shares is None and listed != self.clients:
            raise ValueError(f"--budget lists {listed} budgets for {self.clients} clients")
        return self

    @model_validator(mode="after")
    def _address_needs_ray(self) -> "Config":
        if self.ray_address is not None and self.runtime != "ray":
            raise ValueError(f"--ray-address is for --runtime ray, not for --runtime {self.runtime}")
        return self

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

    @field_validator("cache_size")
    @classmethod
    def _cache_size_in_bytes(cls, value: str) -> str:
        return "none" if value.strip().lower() == "none" else str(parse_bytes(value))

    def data_path(self) -> Path:
        """Return where the data lies."""
        default = os.environ.get("FEDACT_DATA") or cache_folder() / "data"
        return Path(self.data_dir or default).expanduser()

    @property
    def data_name(self) -> str:
        """What the data is called: a file or a folder of the user's own by its name."""
        return self.data_path().name if self.dataset in ("npz", "folder") else self.dataset

    def client_budgets(self) -> tuple[int | None, ...]:
        """Return each client's budget in bytes, None for no bound."""
        return self.budget.by_client(self.clients, self.seed)

    def to_toml(self) -> str:
        """Return the whole config; reading it back gives an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def cache_folder() -> Path:
    """Return where what is worth keeping between runs lies: $FEDACT_CACHE, else ~/.cache/fedact."""
    return Path(os.environ.get("FEDACT_CACHE") or "~/.cache/fedact").expanduser()
