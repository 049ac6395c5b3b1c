"""Bytes, gradients and time of every method: tables of docs/results/methods.md and docs/numbers.md, by fedact.bench.

python benchmarks/methods.py                        measure and write results/*.json (needs CIFAR-10 and ImageNet weights)
python benchmarks/methods.py --case "equal cosine"  one case; repeat for more
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs import ROOT, Bench, Skipped, photographs

from results import commit, write_result

METHODS = (
    "vanilla", "exact", "exact:derive=2", "checkpoint", "hosvd:variance=0.8", "hosvd:variance=0.8,bits=8",
    "hosvd:variance=0.8,truncation=sequential", "svd:variance=0.8", "channel_svd:variance=0.8", "asi:variance=0.8",
    "lance:variance=0.8", "gradient_filter", "quantize", "division", "topk", "random_projection",
    "transform:variance=0.96", "transform:variance=0.96,derive=2",
)  # fmt: skip
ONE_BY_ONE = (
    "vanilla", "exact", "exact:derive=3", "checkpoint", "hosvd:variance=0.8", "hosvd:variance=0.8,bits=8",
    "hosvd:variance=0.8,bits=8,derive=3", "gradient_filter", "quantize:bits=8", "division:bits=8", "topk:share=0.3",
    "random_projection:ratio=0.5", "transform:variance=0.99", "transform:variance=0.99,derive=3",
)  # fmt: skip
SWEPT = (
    "vanilla", "exact", "exact:derive=3", "checkpoint", "hosvd:variance=0.8", "hosvd:bits=8,variance=0.8", "quantize",
    "division", "topk", "random_projection", "transform", "gradient_filter",
)  # fmt: skip
"""Families of the figure of the whole network."""
SHOWN = {
    "vanilla", "exact", "exact:derive=3", "checkpoint", "hosvd:variance=0.99", "hosvd:variance=0.99,bits=8",
    "quantize:bits=8", "division:bits=8", "topk:share=0.3", "random_projection:ratio=0.5", "transform:variance=0.9999",
    "gradient_filter",
}  # fmt: skip
"""Of its points, those in the table."""
DEPTHS = (2, 4, 6)
NAMES = {"features.17.conv.0.0": "17.expand", "features.17.conv.1.0": "17.dw", "features.17.conv.2": "17.project",
         "features.18.0": "18", "classifier.1": "head"}  # fmt: skip
"""Short names of the last 4 convolutions and the head."""
FAMILIES = ("hosvd:bits=8", "hosvd", "quantize", "division", "topk", "random_projection", "transform")
Row = dict[str, Any]
Table = dict[str, Any]
Found = tuple[str, Table]
"""A command, and the table from what it wrote."""


def bench(runs: Bench, *arguments: object, methods: Sequence[str] = ()) -> tuple[str, Row]:
    """Return a command of the bench on one thread, with the names of its files alone, and what it wrote."""
    flags = [word for method in methods for word in ("--method", method)]
    given = [*photographs(), "--threads", 1, *arguments, *flags]
    shown = [each.name if isinstance(each, Path) else str(each) for each in given]
    return f"python -m fedact.bench {shlex.join(shown)}", runs.json("bench", *given)[1]


def table(rows: Sequence[Row]) -> Table:
    """Return rows, all with the same columns, as a table."""
    return {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}


def equal_cosine(runs: Bench) -> dict[str, Found]:
    """Measure the least bytes of a layer's input for a gradient cosine."""
    command, found = bench(runs, "--equal-cosine", "--batch-size", 32)
    cases: dict[tuple[str, float], dict[str, Row]] = {}
    for one in found["least"]:
        cases.setdefault((one["layer"], one["wanted"]), {})[one["family"]] = one
    rows = []
    for (layer, wanted), by_family in cases.items():
        sizes = {f"`{name}`": by_family[name]["bytes"] for name in FAMILIES}
        ratios = {
            "8-bit HOSVD / `transform`": f"{sizes['`hosvd:bits=8`'] / sizes['`transform`']:.1f}",
            "HOSVD / `transform`": f"{sizes['`hosvd`'] / sizes['`transform`']:.1f}",
        }
        exact = by_family["hosvd"]["exact_bytes"]
        rows.append({"layer": layer.removeprefix("features."), "exact": exact, "cosine": f"{wanted:g}", **sizes, **ratios})
    return {"equal_cosine": (command, table(rows))}


def steps(runs: Bench) -> dict[str, Found]:
    """Measure a step of 16 examples at once, by depth: bytes, cosines and time of every method, and what autograd keeps."""
    by_depth = {}
    for depth in DEPTHS:
        command, found = bench(runs, "--batch-size", 16, "--steps", 9, "--layers", depth, methods=METHODS)
        by_depth[depth] = {row["method"]: row for row in found["methods"]}
    sizes, seconds = [], []
    for method in METHODS:
        by = {depth: by_depth[depth][method] for depth in DEPTHS}
        saved = {f"saved, last {depth}": row["saved_bytes"] for depth, row in by.items()}
        cosines = {short: f"{by[4]['cosine'][name + '.weight']:.3f}" for name, short in NAMES.items()}
        about = {"method": method, "recompute": by[4]["recompute"]}
        sizes.append({**about, "peak, last 4": by[4]["peak_bytes"], **saved, **cosines})
        seconds.append({**about, **{f"last {depth}": f"{row['time_ratio']:.2f}" for depth, row in by.items()}})
    kept = [
        {
            "trained convolutions": depth, "peak": vanilla["peak_bytes"], "paper bytes": vanilla["paper_bytes"],
            "autograd holds": vanilla["saved_bytes"], "peak of `exact`": exact["peak_bytes"],
            "`exact` holds": exact["saved_bytes"],
        }
        for depth, vanilla, exact in ((depth, rows["vanilla"], rows["exact"]) for depth, rows in by_depth.items())
    ]  # fmt: skip
    command = command.replace(f"--layers {DEPTHS[-1]}", "--layers 4")
    return {name: (command, table(rows)) for name, rows in
            (("step_bytes", sizes), ("step_seconds", seconds), ("autograd", kept))}  # fmt: skip


def micro_batches(runs: Bench) -> dict[str, Found]:
    """Measure a batch of 16 one example at a time, and plain training of it at once."""
    shared = ("--batch-size", 16, "--layers", 4, "--batches", 1)
    at_once = bench(runs, *shared, "--steps", 0, methods=("vanilla",))[1]["methods"][0]
    command, found = bench(runs, *shared, "--steps", 5, "--micro-batch", 1, methods=ONE_BY_ONE)
    floor = found["floor"]["bytes"]
    measured = [(16, at_once | {"time_ratio": 1.0}), *((1, row) for row in found["methods"])]
    rows = [{"method": row["method"], "micro-batch": size, **costs(row, floor)} for size, row in measured]
    return {"micro_batches": (command, table(rows))}


def whole_network(runs: Bench) -> dict[str, Found]:
    """Measure all 52 convolutions one image at a time, whole and in streams, and draw error against bytes."""
    flags = ("--resolution", 64, "--layers", 52, "--batch-size", 2, "--micro-batch", 1, "--room", "60KB")
    counts = ("--batches", 1, "--draws", 2, "--steps", 0)
    file = ROOT / "docs/images/error_against_bytes.png"
    command, found = bench(runs, "--sweep", "--figure", file, *flags, *counts, methods=SWEPT)
    rows = [
        {"method": row["method"], "in streams": "no" if row["room_bytes"] is None else "yes"}
        | costs(row, found["floor"]["bytes"])
        for row in found["methods"]
        if row["method"] in SHOWN
    ]
    return {"whole_network": (command, table(rows))}


def costs(row: Row, floor_bytes: int) -> Row:
    """Return what a method costs and what its gradient is worth."""
    time = {} if row["time_ratio"] is None else {"time": f"{row['time_ratio']:.2f}"}
    return {
        "method": row["method"],
        "recompute": row["recompute"],
        "peak bytes": row["peak_bytes"],
        "x floor": f"{row['peak_bytes'] / floor_bytes:.2f}",
        "saved bytes": row["saved_bytes"],
        "least cosine of a layer": f"{min(row['cosine'].values()):.3f}",
        **time,
    }


CASES = {
    "equal cosine": equal_cosine, "steps": steps, "micro-batches": micro_batches, "whole network": whole_network,
}  # fmt: skip


def main() -> int:
    """Measure and write; returns 1 where the data or weights are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="measure this alone; repeat for more [all]")
    cases = parser.parse_args().case or list(CASES)
    # Loads torch, which --help can do without.
    from fedact.storage.machine import machine

    versions = {"python": sys.version.split()[0]} | {name: version(name) for name in ("torch", "flwr")}
    facts = {"machine": machine(), "versions": versions, "threads": 1, "seeds": [0], "commit": commit()}
    try:
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                found = CASES[case](Bench(ROOT, Path(folder), quick=False))
            for name, (command, rows) in found.items():
                print(write_result(name, command, {"default": rows}, **facts))
    except Skipped as reason:
        print(f"methods: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
