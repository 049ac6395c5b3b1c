"""Settings of the running itself: seeds, the machine, what is kept, and where rows are written."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from fedact.config.paths import UserPath
from fedact.config.settings.base import Positive, Settings, Switch
from fedact.config.sizes import parse_bytes


class RunningSettings(Settings):
    """Where and how often a run runs, and what it writes."""

    title: ClassVar[str] = "running"

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="random seed of everything")
    seeds: Positive = Field(1, description="number of runs with other seeds, from --seed upwards")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$", description="cpu or cuda")
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto", description="processes that play the clients; auto is the cores, and 1 for a short run"
    )
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(None, description="threads of a client's computation [1]")
    runtime: Literal["local", "ray", "flower"] = Field(
        "local", description="local (this process) or ray (Ray's workers); flwr run sets flower"
    )
    ray_address: str | None = Field(None, min_length=1, description="address of a Ray cluster [a new one on this machine]")
    cache_size: str = Field(
        "1GB", description="limit on the disk cache of frozen layers' outputs, kept between runs; or none"
    )
    tensorboard: Switch = Field(False, description="write the rounds as TensorBoard scalars into the run's folder too")
    out: UserPath | None = Field(None, description="folder of the run [runs/<time>-<dataset>-<model>]")

    @field_validator("cache_size")
    @classmethod
    def _cache_size_in_bytes(cls, value: str) -> str:
        return "none" if value.strip().lower() == "none" else str(parse_bytes(value))
