"""A run on disk: config.toml, plans.json, records.jsonl and checkpoints. Nothing is ever half-written."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedact.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
CLIENT_FIELDS = (
    "kind", "method", "seed", "round", "client", "status", "reason", "budget_bytes", "saved_bytes", "state_bytes",
    "peak_bytes", "paper_bytes", "plan", "trained_layers", "micro_batch", "num_examples", "train_loss", "accuracy",
    "upload_bytes", "download_bytes", "fault", "traceback", "seconds",
)  # fmt: skip
ROUND_FIELDS = (
    "kind", "method", "seed", "round", "accuracy", "loss", "worst_client_accuracy", "saved_bytes_max", "peak_bytes_max",
    "clients", "trained_by", "seconds",
)  # fmt: skip
_NEEDED = {"run": ("config",), "client": ("method", "seed", "round", "client"), "round": ("method", "seed", "round")}
_FIELDS = {"client": CLIENT_FIELDS, "round": ROUND_FIELDS}

Row = dict[str, Any]


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

    def checkpoint(self, method: str, number: int) -> Path:
        """Return where a method's trained tensors after a round lie."""
        return self.path / "checkpoints" / f"{_slug(method)}-round-{number:04d}.safetensors"

    def server_state(self, method: str, number: int) -> Path:
        """Return where what a method's server remembers after a round lies."""
        return self.path / "checkpoints" / f"{_slug(method)}-server-{number:04d}.safetensors"

    def states(self, method: str, key: str) -> Path:
        """Return where the states lie that a method found for a plan that was made again."""
        return self.path / "checkpoints" / f"{_slug(method)}-states-{key}.safetensors"

    def read_plans(self) -> dict[str, dict[str, Row]]:
        """Return plans.json by method and budget; raises ConfigError where it is missing or broken."""
        try:
            plans = json.loads(self.plans.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.plans} cannot be read: {error}") from None
        if not isinstance(plans, dict) or not all(isinstance(by_budget, dict) for by_budget in plans.values()):
            raise ConfigError(f"{self.plans} holds no plans by method and budget")
        return plans

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows in one write, complete and in the order of their fields."""
        text = "".join(json.dumps(complete(row)) + "\n" for row in rows)
        with self.records.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """Return the rows of every finished round; an unfinished tail is left out."""
        return finished(read_rows(self.records))

    def cut_unfinished(self) -> list[Row]:
        """Drop the rows after the last finished round from the file, and return the others."""
        rows = self.rows()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if text != self.records.read_text(encoding="utf-8", errors="replace"):
            write_whole(self.records, text)
        return rows


@dataclass(frozen=True, eq=False)
class Run:
    """A run read back: one row a round, one row a client and round, the ``run`` rows, and the plans by method and budget."""

    path: Path
    rounds: "pd.DataFrame"
    clients: "pd.DataFrame"
    headers: list[Row]
    plans: dict[str, dict[str, Row]] = field(default_factory=dict)

    @property
    def config(self) -> Row:
        """The run's whole config."""
        return dict(self.headers[0]["config"])


def load_run(path: str | Path) -> Run:
    """Return a run's rounds and clients as pandas DataFrames; all seeds of a run with several.

    Raises ConfigError where the folder holds no run.
    """
    import pandas as pd

    folders = run_folders(Path(path))
    rows = [row for folder in folders for row in folder.rows()]
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("run", "client", "round")}
    if not by_kind["run"]:
        raise ConfigError(f"{path} holds no run: its records.jsonl is empty")
    clients = pd.DataFrame(by_kind["client"], columns=list(CLIENT_FIELDS))
    rounds = pd.DataFrame(by_kind["round"], columns=list(ROUND_FIELDS))
    plans = folders[0].read_plans() if folders[0].plans.exists() else {}
    return Run(Path(path), rounds, clients, by_kind["run"], plans)


def run_folders(path: Path) -> list[RunFolder]:
    """Return the folder of each seed of a run; raises ConfigError where there is none."""
    candidates = [path, *sorted(path.glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))]
    folders = [RunFolder(folder) for folder in candidates if RunFolder(folder).records.is_file()]
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
    """Return null for what JSON has no number for."""
    return None if isinstance(value, float) and not isfinite(value) else value


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a records file, up to a torn last line.

    Raises ConfigError for a missing file, or a broken line before the last.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    # The last piece is what follows the last newline: nothing, or a line that was never finished.
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({**row, **{name: row[name] for name in _NEEDED.get(row["kind"], ())}})
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{file}, line {number}, is no record") from None
    return rows


def finished(rows: list[Row]) -> list[Row]:
    """Return the rows up to the last one that ends something: a run's header or a round."""
    ends = [position for position, row in enumerate(rows) if row["kind"] in ("run", "round")]
    return rows[: ends[-1] + 1] if ends else []


def write_whole(file: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
