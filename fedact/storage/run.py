"""A run on disk: config.toml, plans.json, partition.csv, records.jsonl and checkpoints. Nothing is ever half-written."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedact.config.errors import ConfigError
from fedact.config.plan import PlanKey, plans_from_json
from fedact.storage.disk import append_lines, cut, sweep, write_whole
from fedact.storage.partition_csv import COLUMNS, no_holdings, read_holdings
from fedact.storage.rows import CLIENT_FIELDS, ROUND_FIELDS, Row, check_order, ends_something, read_row, score_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CLIENT_FIELDS", "ROUND_FIELDS", "Row", "Run", "RunFolder", "complete", "finished", "load_run", "make_run", "read_rows",
    "run_folders", "write_whole",
]  # fmt: skip

_FIELDS = {"client": CLIENT_FIELDS, "round": ROUND_FIELDS}


@dataclass(frozen=True)
class RunFolder:
    """Where one run of one seed lies."""

    path: Path

    @property
    def records(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def plans(self) -> Path:
        return self.path / "plans.json"

    @property
    def partition(self) -> Path:
        return self.path / "partition.csv"

    def checkpoint(self, method: str, number: int) -> Path:
        """Return where a method's trained tensors after a round lie."""
        return self.path / "checkpoints" / f"{_slug(method)}-round-{number:04d}.safetensors"

    def server_state(self, method: str, number: int) -> Path:
        """Return where what a method's server remembers after a round lies."""
        return self.path / "checkpoints" / f"{_slug(method)}-server-{number:04d}.safetensors"

    def tensorboard(self, method: str) -> Path:
        """Return where a method's TensorBoard events lie."""
        return self.path / "tensorboard" / _slug(method)

    def states(self, method: str, key: PlanKey) -> Path:
        """Return where the states lie that a method found for a plan that was made again."""
        return self.path / "checkpoints" / f"{_slug(method)}-states-{key}.safetensors"

    def read_plans(self) -> dict[str, dict[str, Row]]:
        """Return plans.json by method and budget; raises ConfigError where it is missing or broken."""
        if self.plans.exists() and not self.plans.is_file():
            # Opening a pipe waits for somebody to write into it.
            raise ConfigError(f"{self.plans} is no file")
        try:
            plans = json.loads(self.plans.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.plans} cannot be read: {error}") from None
        try:
            plans_from_json(plans)
        except ConfigError as error:
            raise ConfigError(f"{self.plans}: {error}") from None
        return dict(plans)

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows in one write, complete and in the order of their fields."""
        text = "".join(json.dumps(complete(row)) + "\n" for row in rows)
        if self.records.exists():
            append_lines(self.records, text)
        else:
            write_whole(self.records, text)

    def rows(self) -> list[Row]:
        """Return the rows of every finished round; an unfinished tail is left out.

        Raises ConfigError for a file that no run could have written.
        """
        rows = finished(read_rows(self.records))
        check_order(rows, self.records)
        return rows

    def cut_unfinished(self) -> list[Row]:
        """Drop what follows the last finished round from the file, and return the rows before."""
        rows, content = self.rows(), _bytes(self.records)
        length = sum(len(line) + 1 for line in content.split(b"\n")[: len(rows)])
        if length < len(content):
            cut(self.records, length)
        return rows

    def sweep(self) -> None:
        """Remove what a killed process left unfinished."""
        sweep(self.path)
        sweep(self.path / "checkpoints")

    def prune(self, done: dict[str, int]) -> None:
        """Remove what was kept after other rounds than each method's last finished one."""
        for method, last in done.items():
            kept = self.checkpoint(method, last), self.server_state(method, last)
            for what in ("round", "server"):
                for file in kept[0].parent.glob(f"{_slug(method)}-{what}-*.safetensors"):
                    if file not in kept:
                        file.unlink()

    def check_links(self, inside: Path) -> None:
        """Raise ConfigError where writing would lead out of the run's folder, which may be a link itself."""
        own = (self.config, self.plans, self.partition, self.records, self.path / "checkpoints")
        for path in own if self.path == inside else (self.path, *own):
            if path.is_symlink():
                raise ConfigError(f"{path} is a link: a run is written into its own folder alone")


@dataclass(frozen=True, eq=False)
class Run:
    """A run read back: one row a round, one row a client and round, the ``run`` rows, and the plans by method and budget.

    partition: how many examples of a label a client holds under a seed, one row for each that holds any; empty for a run
    from before this was kept.
    """

    path: Path
    rounds: "pd.DataFrame"
    clients: "pd.DataFrame"
    headers: list[Row]
    plans: dict[str, dict[str, Row]] = field(default_factory=dict)
    partition: "pd.DataFrame" = field(default_factory=no_holdings)

    @property
    def config(self) -> Row:
        """The run's whole config."""
        return dict(self.headers[0]["config"])

    @property
    def score_name(self) -> str:
        return score_name(self.config)

    @property
    def classes(self) -> list[str] | None:
        return self.headers[0].get("classes")


def load_run(path: str | Path) -> Run:
    """Return a run's rounds and clients as pandas DataFrames; all seeds of a run with several.

    Raises ConfigError where the folder holds no run.
    """
    folders = run_folders(Path(path))
    by_folder = {folder.path: folder.rows() for folder in folders}
    run = make_run(Path(path), chain(*by_folder.values()), folders[0].read_plans() if folders[0].plans.exists() else {})
    return replace(run, partition=_holdings(by_folder))


def _holdings(by_folder: dict[Path, list[Row]]) -> "pd.DataFrame":
    """Return who holds what under every seed that has begun, from the rows in each one's folder."""
    import pandas as pd

    seeds = {path: rows[0]["config"].get("seed", 0) for path, rows in by_folder.items() if rows}
    found = [read_holdings(RunFolder(path).partition).assign(seed=seed) for path, seed in seeds.items()]
    return pd.concat(found, ignore_index=True)[["seed", *COLUMNS]]


def make_run(path: Path, rows: Iterable[Row], plans: dict[str, dict[str, Row]]) -> Run:
    """Return a run from its rows; raises ConfigError where there are none."""
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
    """Return the folder of each seed of a run; raises ConfigError where there is none."""
    try:
        candidates = [path, *sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))]
        folders = [RunFolder(folder) for folder in candidates if RunFolder(folder).records.is_file()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not folders:
        raise ConfigError(f"{path} holds no run: there is no records.jsonl in it")
    return folders


def complete(row: Row) -> Row:
    """Return the row with every field of its kind, null where nothing was measured."""
    fields: Sequence[str] = _FIELDS.get(row["kind"], tuple(row))
    if strange := set(row) - set(fields):
        raise KeyError(f"a {row['kind']} row has no field {', '.join(sorted(strange))}")
    return {name: _finite(row.get(name)) for name in fields}


def _slug(method: str) -> str:
    return "".join(character if character.isalnum() or character in ".-_" else "-" for character in method)


def _finite(value: Any) -> Any:
    """Return null for what JSON has no number for, in a list too."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a records file, up to a torn tail: a write without its last newline.

    Raises ConfigError for a missing file, or a broken line in what was written whole.
    """
    # The last piece is what follows the last newline: nothing, or a line that was never finished.
    *lines, torn = _bytes(file).split(b"\n")
    rows = [read_row(line) for line in lines]
    whole = max((number for number, row in enumerate(rows, start=1) if ends_something(row)), default=0)
    for number, row in enumerate(rows, start=1):
        if row is None and (not torn or number <= max(whole, 1)):
            raise ConfigError(f"{file}, line {number}, is no record")
    until = rows.index(None) if None in rows else len(rows)
    return [row for row in rows[:until] if row is not None]


def finished(rows: list[Row]) -> list[Row]:
    """Return the rows up to the last one that ends something: a run's header or a round."""
    ends = [position for position, row in enumerate(rows) if ends_something(row)]
    return rows[: ends[-1] + 1] if ends else []


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
