"""What a fleet learns within budgets of peak bytes: every method under every budget.

python benchmarks/fleet_budgets.py run OUT [--budgets 128KB ...]   the runs, each in a folder under OUT; finished ones stay
python benchmarks/fleet_budgets.py record OUT                      writes results/fleet_budgets.json

$FEDACT_DATA has cifar10.npz and weights/mobilenet_v2-imagenet.safetensors.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from runs import IMAGENET

from results import NOT_RECORDED, commit, write_result

BUDGETS = {"128KB": 128_000, "256KB": 256_000, "512KB": 512_000, "1MB": 1_000_000}
METHODS = (
    *("auto", "exact", "checkpoint", "hosvd", "hosvd:variance=0.8", "hosvd:bits=8"),
    *("asi", "svd", "gradient_filter", "quantize", "vanilla"),
)
RECOMPUTES = {"auto": METHODS, "0": ("exact",)}
"""The methods that are run with each --recompute."""
SEEDS = 3
NOTHING = "-"
Rows = list[dict[str, Any]]


def command(budget: str, recompute: str) -> list[str]:
    """Return the command of one budget's runs, without its folder."""
    data = Path(os.environ["FEDACT_DATA"])
    methods = [word for method in RECOMPUTES[recompute] for word in ("--method", method)]
    return shlex.split(
        f"python -m fedact.simulate --dataset npz --data-dir {data / 'cifar10.npz'} --weights {data / IMAGENET} "
        f"--resolution 64 --max-examples 664 --rounds 5 --evaluate-every 5 --batch-size 8 --lr 0.03 --seeds {SEEDS} "
        f"--workers 1 --scope peak --budget {budget} --recompute {recompute} {shlex.join(methods)}"
    )


def written(words: list[str]) -> str:
    """Return a command as the documentation has it, without this machine's folders."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def run(out: Path, budgets: list[str]) -> None:
    """Run what has not been run, resuming what was interrupted."""
    for budget in budgets:
        for recompute in RECOMPUTES:
            folder = out / f"{budget}-recompute-{recompute}"
            words = [sys.executable, *command(budget, recompute)[1:], "--out", str(folder)]
            whole = [sys.executable, "-m", "fedact.simulate", "--resume", str(folder)] if folder.exists() else words
            subprocess.run(whole, check=True)


def read(folder: Path) -> tuple[Rows, dict[int, Any]]:
    """Return the rows of all seeds, and the plans by seed."""
    rows: Rows = []
    plans = {}
    for each in sorted(folder.glob("seed-*")):
        own = [json.loads(line) for line in (each / "records.jsonl").read_text().splitlines()]
        rows += own
        plans[own[0]["config"]["seed"]] = json.loads((each / "plans.json").read_text())
    return rows, plans


def cell(rows: Rows, plans: dict[int, Any], method: str, recompute: str) -> dict[str, Any]:
    """Return a method's figures over all seeds; raises ValueError where a seed has not finished."""
    own = [row for row in rows if row.get("method") == method]
    clients = [row for row in own if row["kind"] == "client"]
    scores = [100 * row["accuracy"] for row in own if row["kind"] == "round" and row["round"] == 5]
    if len(scores) != SEEDS:
        raise ValueError(f"{method}: {len(scores)} seeds of {SEEDS}")
    made = [plan for seed in plans.values() for plan in seed[method].values()]
    seconds = [sum(row["seconds"] or 0.0 for row in clients if row["seed"] == seed) for seed in plans]
    return {
        "method": f"{method} (nothing made again)" if recompute == "0" else method,
        "accuracy": round(statistics.mean(scores), 1),
        "standard error": round(statistics.stdev(scores) / SEEDS**0.5, 1),
        "seeds": " / ".join(f"{score:.1f}" for score in scores),
        "seconds of training": round(statistics.mean(seconds), 1),
        "peak bytes": max((row["peak_bytes"] or 0 for row in clients), default=0),
        "trained convolutions": span(plan["layers"] for plan in made),
        "micro-batch": span(plan["micro_batch"] for plan in made),
        "room": span(plan.get("room_bytes") or 0 for plan in made),
        "tiles": span(plan.get("tiles") or 0 for plan in made),
        "recompute": span(plan.get("recompute") or 0 for plan in made),
        "status": ", ".join(sorted({row["status"] for row in clients})),
    }


def span(values: Any) -> str:
    """Return the least and the greatest of some numbers.

    >>> span([8, 4, 8]), span([2, 2]), span([0])
    ('4-8', '2', '-')
    """
    found = sorted(set(values))
    ends = [f"{value:,}" for value in (found[:1] + found[-1:] if len(found) > 1 else found)]
    return "-".join(ends) if found[-1] else NOTHING


def record(out: Path) -> Path:
    """Write results/fleet_budgets.json: a table a budget, and one with the accuracy under all of them."""
    tables: dict[str, Any] = {}
    for budget in BUDGETS:
        found = [
            cell(*read(out / f"{budget}-recompute-{recompute}"), method, recompute)
            for recompute, methods in RECOMPUTES.items() for method in methods
        ]  # fmt: skip
        tables[budget] = {"columns": list(found[0]), "rows": [list(each.values()) for each in found]}
    columns = ["method", *(f"{size:,} bytes" for size in BUDGETS.values())]
    methods = [row[0] for row in tables["128KB"]["rows"]]
    cells = [[text(dict(zip(table["columns"], table["rows"][place], strict=True))) for table in tables.values()]
             for place in range(len(methods))]  # fmt: skip
    default = {"columns": columns, "rows": [[method, *row] for method, row in zip(methods, cells, strict=True)]}
    rows, _ = read(out / "512KB-recompute-auto")
    commands = [written(command(budget, recompute)) for budget in BUDGETS for recompute in RECOMPUTES]
    return write_result(
        "fleet_budgets", "\n".join(commands), {"default": default, **tables},
        machine=rows[0].get("machine") or NOT_RECORDED, versions=rows[0]["versions"],
        threads=rows[0]["config"]["threads"], seeds=range(SEEDS), commit=commit(),
    )  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """Return a cell of the table of all budgets: accuracy, trained convolutions, micro-batch, seconds."""
    if "skipped" in found["status"]:
        return "does not fit"
    depth = "the head" if found["trained convolutions"] == NOTHING else found["trained convolutions"]
    return (
        f"{found['accuracy']} ± {found['standard error']}; {depth}, {found['micro-batch']}; {found['seconds of training']} s"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "record"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    given = parser.parse_args()
    if given.what == "run":
        run(given.out, given.budgets)
    else:
        print(record(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
