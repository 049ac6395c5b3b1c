"""A run read back from disk, as pandas DataFrames."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fedact.config.errors import ConfigError
from fedact.storage.partition_csv import COLUMNS, NAME, empty_partition, read_partition
from fedact.storage.rows import CLIENT_FIELDS, ROUND_FIELDS, Row, score_name
from fedact.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Run:
    """A run read back: its rows as pandas DataFrames, with the fields of records.jsonl as columns.

    rounds: one row a method, seed and round: the global model's accuracy and loss, the clients' largest bytes. clients: one
    row a client that was drawn in a round. headers: the ``run`` row of each seed. plans: by method and budget. partition:
    the number of ``examples`` of each label that a client holds under a seed, with its ``name`` where clients have some;
    empty for a run without partition.csv.
    """

    path: Path
    rounds: "pd.DataFrame"
    clients: "pd.DataFrame"
    headers: list[Row]
    plans: dict[str, dict[str, Row]] = field(default_factory=dict)
    partition: "pd.DataFrame" = field(default_factory=empty_partition)

    @property
    def config(self) -> Row:
        """All settings of the run, as in config.toml."""
        return dict(self.headers[0]["config"])

    @property
    def score_name(self) -> str:
        """What column ``accuracy`` holds: "accuracy", or "mean IoU"."""
        return score_name(self.config)

    @property
    def client_names(self) -> list[str] | None:
        """The clients' names by number, under the first seed; None where they have none."""
        return self.headers[0].get("client_names")

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, None where they are not known."""
        return self.headers[0].get("classes")


def load_run(path: str | Path) -> Run:
    """Return a run read back from its folder, with all seeds of a run with several.

    Rows of a round that was never finished are left out. Raises ConfigError where the folder holds no run, or files that no
    run could have written. For users there is ``fedact.load_run``, whose run makes models too.
    """
    import pandas as pd

    folders = run_folders(Path(path))
    rows = {folder: folder.rows() for folder in folders}
    run = make_run(Path(path), chain(*rows.values()), folders[0].read_plans() if folders[0].plans.exists() else {})
    seeds = {folder: own[0]["config"].get("seed", 0) for folder, own in rows.items() if own}
    partitions = [read_partition(folder.partition).assign(seed=seed) for folder, seed in seeds.items()]
    return replace(run, partition=_with_seed_first(pd.concat(partitions, ignore_index=True)))


def _with_seed_first(partition: "pd.DataFrame") -> "pd.DataFrame":
    return partition[["seed", *COLUMNS, *([NAME] if NAME in partition else [])]]


def make_run(path: Path, rows: Iterable[Row], plans: dict[str, dict[str, Row]]) -> Run:
    """Return a run from its rows, without a partition; raises ConfigError where there are none."""
    import pandas as pd

    by_kind: dict[str, list[Row]] = {"run": [], "client": [], "round": []}
    for row in rows:
        by_kind[row["kind"]].append(row if row["kind"] == "run" else {"class_iou": None, **row})
    if not by_kind["run"]:
        raise ConfigError(f"{path} holds no run: its records.jsonl is empty")
    clients = pd.DataFrame(by_kind["client"], columns=list(CLIENT_FIELDS))
    rounds = pd.DataFrame(by_kind["round"], columns=list(ROUND_FIELDS))
    return Run(path, rounds, clients, by_kind["run"], plans)


def run_folders(path: Path) -> list[RunFolder]:
    """Return the folder of each seed of a run, by number; raises ConfigError where there is none."""
    try:
        candidates = [path, *sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))]
        folders = [RunFolder(folder) for folder in candidates if RunFolder(folder).records.is_file()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not folders:
        raise ConfigError(f"{path} holds no run: there is no records.jsonl in it")
    return folders
