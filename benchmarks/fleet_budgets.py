"""What a fleet learns within budgets of peak bytes: every method under every budget.

python benchmarks/fleet_budgets.py run OUT [--budgets 128KB ...] [--seeds 0 ...]   the runs; what is there stays
python benchmarks/fleet_budgets.py record OUT                                      writes results/fleet_budgets.json

$FEDACT_DATA has cifar10.npz and weights/mobilenet_v2-imagenet.safetensors.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs import IMAGENET

from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.federation.planning import calibration_batch
from fedact.models.tasks import task_loss
from fedact.nn.surgery import apply
from fedact.training.local import micro_step
from fedact.training.workspace import Workspace, prepare
from results import NOT_RECORDED, commit, write_result

BUDGETS = {"128KB": 128_000, "256KB": 256_000, "512KB": 512_000, "1MB": 1_000_000}
METHODS = (
    *("auto", "exact", "checkpoint", "hosvd", "hosvd:bits=8", "hosvd:variance=0.8"),
    *("quantize", "asi", "svd", "gradient_filter", "vanilla"),
)
ROUNDS, SEEDS = 5, (0, 1, 2)
NOTHING = "-"
Rows = list[dict[str, Any]]
Plans = list[dict[str, Any]]
STEPS = 3
"""Batches timed after a first one; the fastest counts."""


def command(budget: str, seed: int) -> list[str]:
    """Return the command of one budget's runs with a seed, without its folder."""
    data = Path(os.environ["FEDACT_DATA"])
    methods = [word for method in METHODS for word in ("--method", method)]
    return shlex.split(
        f"python -m fedact.simulate --dataset npz --data-dir {data / 'cifar10.npz'} --weights {data / IMAGENET} "
        f"--resolution 64 --clients 10 --max-examples 264 --rounds {ROUNDS} --evaluate-every {ROUNDS} --batch-size 8 "
        f"--lr 0.03 --workers 1 --scope peak --budget {budget} --seed {seed} {shlex.join(methods)}"
    )


def run(out: Path, budgets: Iterable[str], seeds: Iterable[int]) -> None:
    """Run what has not been run, and resume what was interrupted."""
    for seed in seeds:
        for budget in budgets:
            folder = out / budget / f"seed-{seed}"
            words = ["-m", "fedact.simulate", "--resume", str(folder)] if folder.exists() else command(budget, seed)[1:]
            subprocess.run([sys.executable, *words, *(() if folder.exists() else ("--out", str(folder)))], check=True)


def read(out: Path, budget: str) -> tuple[Rows, dict[str, Plans]]:
    """Return the rows of all seeds, and every method's plans where it has finished."""
    rows: Rows = []
    plans: dict[str, Plans] = {}
    for folder in sorted(path for path in (out / budget).glob("seed-*") if path.is_dir()):
        own = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        rows += own
        for method, made in json.loads((folder / "plans.json").read_text()).items():
            if any(row["kind"] == "round" and (row["method"], row["round"]) == (method, ROUNDS) for row in own):
                plans.setdefault(method, []).extend(made.values())
    return rows, plans


def image_milliseconds(workspace: Workspace, plan: Plan) -> float | None:
    """Return the processor's milliseconds of training on an image under a plan, its frozen part included, one thread."""
    if plan.status == "skipped":
        return None
    model, seconds = apply(workspace.model_with({}), plan), list[float]()
    x, y = calibration_batch(workspace.experiment)
    for _ in range(1 + STEPS):
        begin = time.process_time()
        for part in zip(x.split(plan.micro_batch), y.split(plan.micro_batch), strict=True):
            micro_step(model, *part, len(y), task_loss)
        seconds.append(time.process_time() - begin)
        model.zero_grad()
    return round(1000 * min(seconds[1:]) / len(y), 1)


def figures(rows: Rows, method: str, plans: Plans, workspace: Workspace) -> dict[str, Any]:
    """Return a method's figures over the seeds that it has finished; the time is that of the first seed's plan."""
    own = [row for row in rows if row.get("method") == method]
    ends = {row["seed"]: 100 * row["accuracy"] for row in own if row["kind"] == "round" and row["round"] == ROUNDS}
    clients = [row for row in own if row["kind"] == "client" and row["seed"] in ends]
    scores = list(ends.values())
    return {
        "method": method,
        "accuracy": round(statistics.mean(scores), 1) if scores else None,
        "standard error": round(statistics.stdev(scores) / len(scores) ** 0.5, 1) if len(scores) > 1 else None,
        "by seed": " / ".join(f"{score:.1f}" for score in scores),
        "ms an image": image_milliseconds(workspace, Plan.from_json(json.dumps(plans[0]))) if scores else None,
        "peak bytes": max((row["peak_bytes"] or 0 for row in clients), default=0) or None,
        "trained convolutions": span(plan["layers"] for plan in plans),
        "micro-batch": span(plan["micro_batch"] for plan in plans),
        "room": span(plan.get("room_bytes") or 0 for plan in plans),
        "tiles": span(plan.get("tiles") or 0 for plan in plans),
        "recompute": span(plan.get("recompute") or 0 for plan in plans),
        "status": ", ".join(sorted({row["status"] for row in clients})),
    }


def span(values: Iterable[int]) -> str:
    """Return the least and the greatest of some numbers.

    >>> span([8, 4, 8]), span([2, 2]), span([0])
    ('4-8', '2', '-')
    """
    found = sorted(set(values))
    ends = dict.fromkeys([found[0], found[-1]]) if found else [0]
    return "-".join(f"{value:,}" for value in ends) if any(ends) else NOTHING


def text(found: dict[str, Any]) -> str:
    """Return a cell of the table of all budgets: accuracy, trained convolutions, micro-batch, milliseconds."""
    if found["accuracy"] is None or "skipped" in found["status"]:
        return "does not fit" if found["status"] else NOTHING
    error = " (one seed)" if found["standard error"] is None else f" ± {found['standard error']}"
    depth = "the head" if found["trained convolutions"] == NOTHING else found["trained convolutions"]
    return f"{found['accuracy']}{error}; {depth}, {found['micro-batch']}; {found['ms an image']:.0f} ms"


def record(out: Path) -> Path:
    """Write results/fleet_budgets.json: a table a budget, and one of the accuracy under all of them."""
    tables, summary = dict[str, Any](), {method: [method] for method in METHODS}
    budgets = [budget for budget in BUDGETS if (out / budget).exists()]
    workspace = None
    for budget in budgets:
        rows, plans = read(out, budget)
        workspace = workspace or prepare(Config.model_validate({**rows[0]["config"], "threads": 1}))
        found = [figures(rows, method, plans.get(method, []), workspace) for method in METHODS]
        tables[budget] = {"columns": list(found[0]), "rows": [list(each.values()) for each in found]}
        for each in found:
            summary[each["method"]].append(text(each))
    columns = ["method", *(f"{BUDGETS[budget]:,} bytes" for budget in budgets)]
    words = [" ".join(Path(word).name if word.startswith("/") else word for word in command(each, 0)) for each in budgets]
    return write_result(
        "fleet_budgets", "\n".join(words), {"default": {"columns": columns, "rows": list(summary.values())}, **tables},
        machine=rows[0].get("machine") or NOT_RECORDED, versions=rows[0]["versions"],
        threads=rows[0]["config"]["threads"], seeds=SEEDS, commit=commit(),
    )  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "record"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    given = parser.parse_args()
    if given.what == "run":
        run(given.out, given.budgets, given.seeds)
    else:
        print(record(given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
