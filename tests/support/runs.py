"""Command lines of small runs, and what two runs of one config have in common."""

import json
from pathlib import Path
from typing import Any

TINY = [
    "--dataset", "synthetic", "--weights", "none", "--max-examples", "80", "--max-test-examples", "20", "--width", "0.25",
    "--resolution", "32", "--clients", "4", "--rounds", "2", "--batch-size", "8", "--calibration", "16",
    "--local-epochs", "1", "--layers", "2", "--budget", "460KB", "--lr", "0.1",
]  # fmt: skip
BOTH = [*TINY, "--method", "vanilla", "--method", "hosvd"]
"""Two methods."""
SMALL = [
    "--dataset", "synthetic", "--weights", "none", "--max-examples", "120", "--max-test-examples", "40", "--width", "0.1",
    "--resolution", "32", "--clients", "2", "--batch-size", "8", "--calibration", "16", "--local-epochs", "1", "--lr", "0.1",
]  # fmt: skip
ONE = [*SMALL, "--layers", "0", "--rounds", "1", "--method", "exact"]
REPLANNED = [*SMALL, "--layers", "1", "--rounds", "3", "--replan", "1", "--budget", "500KB"]
REPLANNED += ["--method", "lance:variance=0.8"]
"""Its plans are looked at before every round but the first."""
STATES = "checkpoints/lance-variance-0.8-states-500000@2.safetensors"
CHECKPOINT = "checkpoints/lance-variance-0.8-round-0002.safetensors"
RUNS = {
    "two methods": [*SMALL, "--rounds", "2", "--layers", "1", "--method", "exact", "--method", "quantize:bits=4"],
    "two seeds": [*SMALL, "--rounds", "2", "--layers", "0", "--method", "vanilla", "--seeds", "2", "--seed", "3"],
    "plans made again": [
        *SMALL, "--rounds", "3", "--layers", "2", "--method", "lance:variance=0.8", "--replan", "1", "--budget", "500KB",
    ],
    "mixed budgets": [*SMALL, "--clients", "3", "--rounds", "2", "--method", "exact", "--budget", "1KB:1,80KB:1,none:1"],
    "a server that remembers": [
        *SMALL, "--rounds", "3", "--layers", "1", "--method", "exact", "--strategy", "fedadam", "--faults", "drop=0.3",
    ],
    "pretrained digits": [
        "--max-examples", "400", "--max-test-examples", "100", "--width", "0.1", "--resolution", "16", "--clients", "3",
        "--rounds", "2", "--batch-size", "8", "--calibration", "16", "--layers", "1", "--method", "exact", "--lr", "0.1",
    ],
}  # fmt: skip
FEW_SETTINGS = {
    "dataset": "synthetic", "weights": "none", "max_examples": 60, "max_test_examples": 20, "width": 0.25, "resolution": 32,
    "clients": 3, "batch_size": 8, "calibration": 16, "local_epochs": 1, "lr": 0.1,
}  # fmt: skip
FEW = [word for key, value in FEW_SETTINGS.items() for word in (f"--{key.replace('_', '-')}", str(value))]
FEW += ["--layers", "2"]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict]:
    return [{**row, "seconds": None} for row in rows(folder) if row["kind"] in ("client", "round")]


def contents(folder: Path) -> dict[str, Any]:
    """Return what two runs of one config have in common, file by file."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "records.jsonl":
            found[name] = timeless(path.parent)
        else:
            found[name] = True if path.suffix == ".png" else path.read_bytes()
    return found
