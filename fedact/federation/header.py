"""The first row of a run: what the run is, on which machine it began, and from which initial weights."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedact.config.errors import ConfigError
from fedact.config.schema import Config
from fedact.storage.machine import machine, versions
from fedact.storage.rows import SCHEMA, Row
from fedact.training.experiment import Experiment


def run_header(config: Config, experiment: Experiment, budgets: Sequence[int | None], command: str) -> Row:
    """Return the ``run`` row.

    config: complete. budgets: each client's, in bytes.
    """
    return {
        "kind": "run",
        "schema": SCHEMA,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "machine": machine(),
        "threads": config.threads,
        "start_digest": experiment.start_digest,
        "classes": list(experiment.classes),
        **natural_header(experiment),
        "budgets": {str(size): budgets.count(size) for size in dict.fromkeys(budgets)},
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def natural_header(experiment: Experiment) -> Row:
    """Return what the header says of a natural partition; nulls for one that is dealt."""
    if experiment.client_names is None:
        return dict.fromkeys(("client_names", "server_clients", "held_out_clients", "partition_digest"))
    held_out = experiment.held_out
    return {
        "client_names": list(experiment.client_names),
        "server_clients": list(experiment.server_names),
        "held_out_clients": [] if held_out is None else list(held_out.names),
        "partition_digest": experiment.partition_digest,
    }


def check_partition(header: Row, experiment: Experiment, file: Path) -> None:
    """Raise ConfigError where the examples are other clients' than when a run began; file: its records, for the message."""
    began = header.get("partition_digest")
    if began is not None and began != experiment.partition_digest:
        raise ConfigError(
            f"in the run in {file} the examples were other clients': {experiment.config.partition} says something else now; "
            "start another run"
        )


def check_start(header: Row, experiment: Experiment, file: Path) -> None:
    """Raise ConfigError where a run began from other initial weights; file: its records, for the message.

    A header from before there were digests says nothing. The frozen layers are in no checkpoint: rounds on other ones would
    be of another model.
    """
    began, here = header.get("start_digest"), experiment.start_digest
    if began not in (None, here):
        raise ConfigError(
            f"the run in {file} began from the initial weights {str(began)[:8]}, and here they are {here[:8]}"
            f"{_differences(header)}: go on where it began, or start another run"
        )


def _differences(header: Row) -> str:
    """Return what is another machine or version than the header's, as a clause."""
    pairs: list[tuple[Any, dict[str, Any]]] = [(header.get("machine"), machine()), (header.get("versions"), versions())]
    found = [
        f"{name} was {then[name]}, is {value}"
        for then, now in pairs
        if isinstance(then, dict)
        for name, value in now.items()
        if name in then and then[name] != value
    ]
    return f" ({', '.join(found)})" if found else ""
