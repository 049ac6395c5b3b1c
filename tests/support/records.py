"""Rows of a run, and whole runs, as they stand on disk."""

import json
from itertools import product
from pathlib import Path
from typing import Any

HEADER = {"kind": "run", "schema": 1, "config": {"clients": 2}}
CONFIG = {"method": ["vanilla"], "rounds": 2, "seed": 0, "seeds": 1, "scope": "saved", "dataset": "digits", "model": "m"}
CLASSES = ["road", "sky", "car", "pole"]
SEGMENTATION = {"config": {"task": "segmentation"}, "header": {"classes": CLASSES}}


def client(number: int, which: int = 0, **fields):
    return {"kind": "client", "method": "exact", "seed": 0, "round": number, "client": which, "status": "ok", **fields}


def round_(number: int, **fields):
    return {"kind": "round", "method": "exact", "seed": 0, "round": number, "accuracy": 0.5, **fields}


def write_run(
    folder: Path, *, methods=("vanilla",), config=None, seed=0, clients=2, rounds=2, header=None, **fields
) -> Path:
    """Write records as a run leaves them, with some of the fields changed."""
    whole = {**CONFIG, "method": list(methods), "seed": seed, "rounds": rounds, **(config or {})}
    rows: list[dict[str, Any]] = [{"kind": "run", "schema": 1, "config": whole, **(header or {})}]
    for place, (method, number) in enumerate(product(methods, range(rounds + 1))):
        common = {"method": method, "seed": seed, "round": number}
        trained = range(clients if number else 0)
        rows += [
            {"kind": "client", **common, "client": client, "status": "ok", "saved_bytes": 1000 + place, "accuracy": 0.5}
            for client in trained
        ]
        accuracy = fields.get("accuracy", (number + place) / 200)
        own = {"accuracy": accuracy, "clients": len(trained), "seconds": 1.0}
        if "class_iou" in fields:
            own["class_iou"] = fields["class_iou"](place)
        rows.append({"kind": "round", **common, **own})
    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_segmentation(folder, **changes):
    """Write a run of 2 methods and 2 rounds whose IoU of each class rises by the row; nobody ever saw a pole."""
    own = {"class_iou": lambda place: [0.1 * place, 0.9 - 0.1 * place, 0.05 * place, None], "methods": ("hosvd", "vanilla")}
    return write_run(folder, **{**SEGMENTATION, **own, **changes})
