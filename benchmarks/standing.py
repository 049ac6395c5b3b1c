"""Standing figures: what must never get worse unnoticed, beside an anchor in the same run; ten minutes on two cores.

python benchmarks/standing.py                    measure this tree, print the figures beside the last entry
python benchmarks/standing.py --write            also append them to results/standing.json
python benchmarks/standing.py --quick            everything, on small cases, in about a minute (never written)
python benchmarks/standing.py --tree DIR         measure another checkout

The anchor is a fixed plain PyTorch step, timed before and after every case. "ratio" is now / last; of seconds, after
dividing both by their anchors' seconds: a slower machine is no slower program. The exit code is 0 unless something failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runs import ROOT, THREADS, Bench, Figures, Rows, Skipped, anchor_seconds, photographs

RESULTS = ROOT / "results" / "standing.json"
EXACT = ("exact", "vanilla", "checkpoint")  # methods that store an input as it is
METHODS = ("vanilla", "hosvd:variance=0.8", "svd", "asi", "quantize", "gradient_filter")
STEP_METHODS = ("hosvd:variance=0.8", "asi", "transform", "exact:derive=3", "checkpoint")
PARTS = {"accuracy on the clients' classes": "client_accuracy", "forgotten": "forgotten", "test examples": "test_examples"}


def main_job(bench: Bench) -> Figures:
    """The main job, first with an empty cache, then again: seconds, accuracy on the whole test set, bytes, the plan."""
    size = ("--clients", 4, "--rounds", 1, "--pretrain-epochs", 2, "--layers", 6) if bench.quick else ("--clients", 20)
    first, rows = bench.simulate("main", *size, "--budget", "512KB")
    following, _ = bench.simulate("main-again", *size, "--budget", "512KB")
    # The first round's plan: later rounds may have others.
    plan, *_ = next(iter(json.loads((bench.folder / "main/plans.json").read_text()).values())).values()
    methods = [kept["method"].partition(":")[0] for kept in plan["kept"]]
    clients, (*_, last) = ([row for row in rows if row["kind"] == kind] for kind in ("client", "round"))
    # Before rows had these fields, accuracy was on test examples redrawn in the clients' proportions.
    redrawn = "test_examples" not in last
    return {
        "seconds, first": first,
        "seconds, then": following,
        "accuracy, redrawn test set" if redrawn else "accuracy": last["accuracy"],
        **{name: last[key] for name, key in PARTS.items() if not redrawn},
        "peak bytes": max(row["peak_bytes"] for row in clients),
        "saved bytes": max(row["saved_bytes"] for row in clients),
        "inputs as factors": sum(method not in EXACT for method in methods),
        "inputs exact": sum(method in EXACT for method in methods),
    }


def cifar10(bench: Bench) -> Figures:
    """CIFAR-10 with ImageNet weights at 64 px: accuracy beside that of the head alone (--layers 0)."""
    clients, examples, rounds = (2, 200, 1) if bench.quick else (8, 1000, 2)
    common = (
        *photographs(), "--resolution", 64, "--clients", clients, "--rounds", rounds, "--max-examples", examples,
        "--max-test-examples", examples // 2,
    )  # fmt: skip
    seconds, rows = bench.simulate("cifar10", *common, *(("--layers", 4) if bench.quick else ()))
    _, head = bench.simulate("cifar10-head", *common, "--method", "exact", "--layers", 0)
    return {
        "seconds": seconds,
        "accuracy": _accuracy(rows),
        "accuracy, head alone": _accuracy(head),
        "accuracy above the head": _accuracy(rows) - _accuracy(head),
    }


def six_methods(bench: Bench) -> Figures:
    """Six methods on the digits: seconds of a round's local training, and relative to vanilla's."""
    named = [part for method in METHODS for part in ("--method", method)]
    size = ("--clients", 4, "--rounds", 2, "--layers", 4, *(("--max-examples", 200) if bench.quick else ()))
    _, rows = bench.simulate("six", *named, *size, "--budget", "none")
    figures: Figures = {}
    for method in METHODS:
        # Of the second round: in the first one the frozen prefix is computed and stored.
        clients = [row for row in rows if row["kind"] == "client" and row["round"] == 2]
        seconds = sum(row["seconds"] for row in clients if row["method"].split(":")[0] == method.split(":")[0])
        figures[f"{method}, seconds"] = seconds
        figures[f"{method}, relative to vanilla"] = seconds / figures["vanilla, seconds"]
    return figures


def plan_52_layers(bench: Bench) -> Figures:
    """A plan for all 52 convolutions of mobilenet_v2: seconds of the whole command, gradient error, saved bytes."""
    size = ("--layers", 6, "--resolution", 32) if bench.quick else ("--layers", 52, "--resolution", 64)
    common = ("--model", "mobilenet_v2", "--weights", "none", "--batch-size", 8, "--budget", "512KB", "--method", "hosvd")
    seconds, plans = bench.json("plan", *size, *common)
    (plan,) = plans["hosvd"].values()
    return {"seconds": seconds, "expected error": plan["expected_error"], "saved bytes": plan["saved_bytes"]}


def steady_round(bench: Bench) -> Figures:
    """A round of local training after the first, beside a plain PyTorch loop on the same batches."""
    count = ("--rounds", 1, "--max-examples", 200) if bench.quick else ("--rounds", 5)
    _, found = bench.json("bench", *count, "--clients", 4, "--layers", 4, "--method", "exact", "--budget", "none")
    cached, uncached = found["rounds"]
    return {
        "seconds": cached["fleet"],
        "seconds, plain": cached["plain"],
        "relative to plain": cached["ratio"],
        "relative to plain, no prefix cache": uncached["ratio"],
    }


def steps(bench: Bench) -> Figures:
    """A step from the first trained layer on, forward and backward, relative to plain training's on the same batch."""
    named = [part for method in ("vanilla", *STEP_METHODS) for part in ("--method", method)]
    count = ("--steps", 3, "--resolution", 32) if bench.quick else ("--steps", 15, "--resolution", 96)
    _, found = bench.json("bench", *named, *count, "--layers", 4, "--batch-size", 16, "--batches", 1, "--draws", 2)
    (plain, *others) = found["methods"]
    ratios = {f"{name}, relative to plain": row["time_ratio"] for name, row in zip(STEP_METHODS, others, strict=True)}
    return {"seconds, plain": plain["seconds"], **ratios}


CASES: dict[str, Callable[[Bench], Figures]] = {
    "main job": main_job,
    "CIFAR-10": cifar10,
    "six methods": six_methods,
    "plan, 52 layers": plan_52_layers,
    "steady round": steady_round,
    "step": steps,
}


def _accuracy(rows: Rows) -> float:
    return next(float(row["accuracy"]) for row in reversed(rows) if row["kind"] == "round")


def measure(bench: Bench, names: list[str]) -> tuple[dict[str, Figures], bool]:
    """Return the figures of each case, its anchor's seconds among them, and whether every case ran or was skipped."""
    found, complete = {}, True
    for name in names:
        begin, before = time.perf_counter(), anchor_seconds()
        try:
            figures = CASES[name](bench)
            found[name] = {"anchor, seconds": (before + anchor_seconds()) / 2, **figures}
            print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        except Skipped as reason:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
        except Exception as error:
            complete = False
            print(f"{name}: failed, {type(error).__name__}: {error}", file=sys.stderr)
    return found, complete


def show(entry: dict[str, Any], last: dict[str, Any] | None) -> None:
    """Print every figure beside the last entry's."""
    print(f"{'':49} {'now':>14} {'last: ' + last['commit'][:7] if last else '-':>14} {'ratio':>7}")
    for case, figures in entry["figures"].items():
        before = last["figures"].get(case, {}) if last else {}
        for name, value in figures.items():
            old, ratio = before.get(name), ""
            if old:
                speed = figures["anchor, seconds"] / before["anchor, seconds"] if "seconds" in name else 1.0
                ratio = f"{value / old:.2f}" if name.startswith("anchor") else f"{value / old / speed:.2f}"
            cells = (f"{each:,.4g}" if isinstance(each, float) else f"{each:,}" for each in (value, old) if each is not None)
            print(f"{case + ': ' + name:49} {next(cells):>14} {next(cells, '-'):>14} {ratio:>7}")


def main() -> int:
    """Measure, print, write; returns 1 where something failed to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="append the figures to results/standing.json")
    parser.add_argument("--quick", action="store_true", help="small cases, about a minute")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout that is measured [this one]")
    parser.add_argument("--case", action="append", choices=CASES, help="measure this alone; repeat for more [all]")
    given = parser.parse_args()
    entries = json.loads(RESULTS.read_text())["entries"] if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        figures, complete = measure(Bench(given.tree.resolve(), Path(folder), given.quick), given.case or list(CASES))
    # Torch is loaded for the anchor anyway.
    from fedact.storage.machine import machine

    git = ["git", "-C", str(given.tree), "rev-parse", "--short=12", "HEAD"]
    entry = {
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in ("torch", "flwr")},
        "machine": machine(),
        "threads": THREADS,
        "figures": figures,
    }
    show(entry, None if given.quick or not entries else entries[-1])
    if given.write and not given.quick and complete:
        entries = [*(old for old in entries if old["commit"] != entry["commit"]), entry]
        RESULTS.write_text(json.dumps({"name": "standing", "entries": entries}, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
