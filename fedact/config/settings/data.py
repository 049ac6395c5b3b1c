"""Settings of the data: which examples, at what size, and who holds them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from fedact.config.errors import as_flag
from fedact.config.natural import partition_in_full
from fedact.config.paths import UserPath
from fedact.config.settings.base import Positive, Settings

USUAL_CALIBRATION = 64
"""The server's examples, at least, where their number is free."""
OF_SEGMENTATION = {
    "model": "pspnet_mobilenet_v2", "dataset": "synthetic", "batch_size": 8, "calibration": 16,
}  # fmt: skip
"""What is not given there."""


class DataSettings(Settings):
    """The examples and how they are dealt out."""

    title: ClassVar[str] = "data"

    task: Literal["classification", "segmentation"] = Field(
        "classification",
        description="classification (a class an image) or segmentation (a class a pixel), then with "
        + ", ".join(f"{as_flag(name)} {value}" for name, value in OF_SEGMENTATION.items()),
    )
    dataset: str = Field("digits", description="data set, see --list")
    data_dir: UserPath | None = Field(
        None, description="folder of the data, a file for npz [$FEDACT_DATA, then ~/.cache/fedact/data]"
    )
    max_examples: Positive | None = Field(None, description="limit on the training examples, stratified by class [all]")
    max_test_examples: Positive | None = Field(None, description="limit on the test examples, stratified by class [all]")
    calibration: Positive | Literal["auto"] = Field(
        "auto",
        description="the server's examples for planning and trials; auto: 64, with given weights a tenth of the training "
        "examples, at most 256",
    )
    partition: str = Field(
        "dirichlet:alpha=0.3",
        description="who holds what: a rule that deals the examples out, see --list; clients (the data's own), or "
        "clients:FILE.csv (columns example, client)",
    )
    partition_by: Literal["class", "source"] = Field(
        "class", description="label that images with masks are dealt by: their most frequent class, or their source"
    )
    void: Annotated[int, Field(ge=0, le=255)] = Field(255, description="mask value to ignore (--dataset folder)")
    resolution: Annotated[int, Field(ge=8, le=2048)] | None = Field(
        None, description="pixels of an image's shorter side [the weights' own, else 64]"
    )

    @field_validator("partition")
    @classmethod
    def _partition_in_full(cls, value: str) -> str:
        return partition_in_full(value)
