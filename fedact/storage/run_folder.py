"""A run's folder: config.toml, plans.json, partition.csv, records.jsonl and checkpoints. Nothing is ever half-written."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedact.config.errors import ConfigError
from fedact.config.plan import PlanKey, plans_from_json
from fedact.storage.disk import append_lines, read_bytes, sweep, truncate, write_whole
from fedact.storage.rows import Row, check_order, complete, finished_rows, read_row, read_rows


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run of one seed: where its files lie, and how rows are written and read."""

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

    def is_run(self) -> bool:
        """Tell whether rows of a run, or of one of its seeds, are there."""
        return self.records.exists() or any(self.path.glob("seed-*/records.jsonl"))

    def checkpoint(self, method: str, number: int) -> Path:
        """Return where a method's trained tensors after a round lie."""
        return self.path / "checkpoints" / f"{_slug(method)}-round-{number:04d}.safetensors"

    def client_checkpoint(self, method: str, client: int, number: int) -> Path:
        """Return where what one client alone had trained after a round lies."""
        return self.path / "checkpoints" / f"{_slug(method)}-client-{client:06d}-round-{number:04d}.safetensors"

    def client_checkpoints(self, method: str) -> list[Path]:
        """Return the files of all clients that train alone."""
        return sorted((self.path / "checkpoints").glob(f"{_slug(method)}-client-*-round-*.safetensors"))

    def server_state(self, method: str, number: int) -> Path:
        """Return where the state of a method's server optimizer after a round lies."""
        return self.path / "checkpoints" / f"{_slug(method)}-server-{number:04d}.safetensors"

    def tensorboard(self, method: str) -> Path:
        """Return where a method's TensorBoard events lie."""
        return self.path / "tensorboard" / _slug(method)

    def states(self, method: str, key: PlanKey) -> Path:
        """Return where the codec state that a new plan begins with lies."""
        return self.path / "checkpoints" / f"{_slug(method)}-states-{key}.safetensors"

    def read_plans(self) -> dict[str, dict[str, Row]]:
        """Return plans.json by method and budget; raises ConfigError where it is missing or broken."""
        if self.plans.exists() and not self.plans.is_file():
            # Opening a pipe waits for somebody to write into it.
            raise ConfigError(f"{self.plans} is no file")
        try:
            plans = json.loads(self.plans.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.plans} cannot be read: {error}") from None
        try:
            plans_from_json(plans)
        except ConfigError as error:
            raise ConfigError(f"{self.plans}: {error}") from None
        return dict(plans)

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows to records.jsonl in one write, each with every field of its kind."""
        text = "".join(json.dumps(complete(row)) + "\n" for row in rows)
        if self.records.exists():
            append_lines(self.records, text)
        else:
            write_whole(self.records, text)

    def rows(self) -> list[Row]:
        """Return the rows of every finished round; an unfinished tail is left out.

        Raises ConfigError for a file that no run could have written.
        """
        rows = finished_rows(read_rows(self.records))
        check_order(rows, self.records)
        return rows

    def header(self) -> Row:
        """Return the first row; raises ConfigError where there is none."""
        first, _, _ = read_bytes(self.records).partition(b"\n")
        if (row := read_row(first)) is None:
            raise ConfigError(f"{self.records}, line 1, is no record")
        return row

    def round_row(self, method: str, number: int) -> Row:
        """Return the row of a method's finished round."""
        return next(
            row for row in self.rows() if (row["kind"], row.get("method"), row.get("round")) == ("round", method, number)
        )

    def cut_unfinished(self) -> list[Row]:
        """Drop what follows the last finished round from the file, and return the rows before."""
        rows, content = self.rows(), read_bytes(self.records)
        length = sum(len(line) + 1 for line in content.split(b"\n")[: len(rows)])
        if length < len(content):
            truncate(self.records, length)
        return rows

    def sweep(self) -> None:
        """Remove what a killed process left unfinished."""
        sweep(self.path)
        sweep(self.path / "checkpoints")

    def prune(self, done: dict[str, int]) -> None:
        """Remove the tensors of all rounds but each method's last finished one.

        done: that round by method.
        """
        for method, last in done.items():
            needed = self.checkpoint(method, last), self.server_state(method, last)
            for kind in ("round", "server"):
                for file in needed[0].parent.glob(f"{_slug(method)}-{kind}-*.safetensors"):
                    if file not in needed:
                        file.unlink()

    def check_links(self, inside: Path) -> None:
        """Raise ConfigError where writing would lead out of the run's folder, which may be a link itself."""
        files = (self.config, self.plans, self.partition, self.records, self.path / "checkpoints")
        for path in files if self.path == inside else (self.path, *files):
            if path.is_symlink():
                raise ConfigError(f"{path} is a link: a run is written into its own folder alone")


def _slug(method: str) -> str:
    """Return a method's name with "-" for whatever some system allows in no file name."""
    return "".join(character if character.isalnum() or character in ".-_" else "-" for character in method)
