"""What a fleet learns within budgets of peak bytes and of saved bytes, and by what it trains: every method, every budget.

python benchmarks/fleet_budgets.py run OUT [--tables fleet_budgets ...] [--budgets 128KB ...] [--seeds 0 ...]   the runs
python benchmarks/fleet_budgets.py record OUT [--tables ...]                                   writes results/TABLE.json

What is there stays: a run that was interrupted goes on, one that lacks a method gets it. $FEDACT_DATA has cifar10.npz and
weights/mobilenet_v2-imagenet.safetensors.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runs import IMAGENET, every_method

from fedact.config.plan import Plan
from fedact.config.schema import Config
from fedact.config.updates import WHOLE
from fedact.federation.planning import calibration_batch
from fedact.models.tasks import task_loss
from fedact.nn.surgery import apply
from fedact.training.local import micro_step
from fedact.training.workspace import Workspace, prepare
from results import NOT_RECORDED, commit, write_result

METHODS = (
    *every_method(), "hosvd:bits=8",
    "hosvd:variance=0.8", "division:bits=2", "topk:share=0.1", "random_projection:ratio=0.2",
)  # fmt: skip
"""Every method with what the budget chooses, HOSVD in 8 bits, and the published settings of some."""
ROUNDS, SEEDS = 5, (0, 1, 2)
NOTHING = "-"
Rows = list[dict[str, Any]]
Plans = list[dict[str, Any]]
STEPS = 3
"""Batches timed after a first one; the fastest counts."""


class Study(NamedTuple):
    """What a budget bounds, the budgets, the methods, and what of the last layers is trained."""

    scope: str
    budgets: dict[str, int]
    methods: tuple[str, ...] = METHODS
    updates: tuple[str, ...] = (WHOLE,)


STUDIES = {
    "fleet_methods": Study("peak", {"512KB": 512_000}),
    "fleet_budgets": Study("peak", {"128KB": 128_000, "256KB": 256_000, "512KB": 512_000, "1MB": 1_000_000}),
    "fleet_saved_budgets": Study("saved", {"64KB": 64_000, "128KB": 128_000, "512KB": 512_000}),
    "fleet_updates": Study(
        "peak", {"512KB": 512_000}, ("exact", "hosvd"), (WHOLE, "bias", "lora:rank=4", "lora:rank=4,freeze_a=true")
    ),
}


class Case(NamedTuple):
    """The runs of one budget and update, a seed each, in a folder of their own."""

    study: Study
    budget: str
    update: str

    @property
    def name(self) -> str:
        """What the case is called in files and in its folder."""
        return self.budget if self.update == WHOLE else f"{self.budget} {self.update}"

    def command(self, seed: int, methods: Iterable[str]) -> list[str]:
        """Return the command of a seed's run of these methods, without its folder."""
        data = Path(os.environ["FEDACT_DATA"])
        flags = [word for method in methods for word in ("--method", method)]
        updates = "" if self.update == WHOLE else f"--update {self.update} "
        return shlex.split(
            f"python -m fedact.simulate --dataset npz --data-dir {data / 'cifar10.npz'} --weights {data / IMAGENET} "
            f"--resolution 64 --clients 10 --max-examples 264 --rounds {ROUNDS} --evaluate-every {ROUNDS} --batch-size 8 "
            f"--lr 0.03 --workers 1 --scope {self.study.scope} {updates}--budget {self.budget} --seed {seed} "
            f"{shlex.join(flags)}"
        )

    def read(self, out: Path) -> tuple[Rows, dict[str, Plans]]:
        """Return the rows of all seeds, and every method's plans where it has finished."""
        rows: Rows = []
        plans: dict[str, Plans] = {}
        for folder in sorted(path for path in (out / self.name).glob("seed-*") if path.is_dir()):
            own = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
            rows += own
            for method, made in json.loads((folder / "plans.json").read_text()).items():
                if any(row["kind"] == "round" and (row["method"], row["round"]) == (method, ROUNDS) for row in own):
                    plans.setdefault(method, []).extend(made.values())
        return rows, plans


def cases(study: Study, budgets: Iterable[str]) -> list[Case]:
    """Return a study's cases under these of its budgets."""
    return [Case(study, budget, update) for update in study.updates for budget in study.budgets if budget in budgets]


def run(out: Path, found: Iterable[Case], seeds: Iterable[int], only: Sequence[str] | None) -> None:
    """Run what has not been run, and resume what was interrupted."""
    for seed in seeds:
        for case in found:
            methods = [method for method in case.study.methods if only is None or method in only]
            folder = out / case.name / f"seed-{seed}"
            subprocess.run([sys.executable, *case.command(seed, methods)[1:], "--out", str(folder)], check=True)


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
    most = {name: max((row[name] or 0 for row in clients), default=0) or None for name in MOST}
    return {
        "method": method,
        "accuracy": round(statistics.mean(scores), 1) if scores else None,
        "standard error": round(statistics.stdev(scores) / len(scores) ** 0.5, 1) if len(scores) > 1 else None,
        "by seed": " / ".join(f"{score:.1f}" for score in scores),
        "ms an image": image_milliseconds(workspace, Plan.from_json(json.dumps(plans[0]))) if scores else None,
        **{words: most[name] for name, words in MOST.items()},
        "gradient bytes": max((plan["gradient_bytes"] for plan in plans), default=None),
        "trained convolutions": span(plan["layers"] for plan in plans),
        "micro-batch": span(plan["micro_batch"] for plan in plans),
        "room": span(plan.get("room_bytes") or 0 for plan in plans),
        "tiles": span(plan.get("tiles") or 0 for plan in plans),
        "recompute": span(plan.get("recompute") or 0 for plan in plans),
        "status": ", ".join(sorted({row["status"] for row in clients})),
    }


MOST = {"peak_bytes": "peak bytes", "saved_bytes": "saved bytes", "upload_bytes": "sent by a client a round"}
"""Of a client's rows, what is shown at its most, with its words."""


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
    error = "" if found["standard error"] is None else f" ± {found['standard error']}"
    depth = "the head" if found["trained convolutions"] == NOTHING else found["trained convolutions"]
    return f"{found['accuracy']}{error}; {depth}, {found['micro-batch']}; {found['ms an image']:.0f} ms"


def record(name: str, out: Path) -> Path:
    """Write results/NAME.json: a table a case, one of the accuracy under all budgets, and one of all cases."""
    study, workspace = STUDIES[name], None
    tables, summary, everything = dict[str, Any](), {method: [method] for method in study.methods}, list[dict[str, Any]]()
    done = [case for case in cases(study, study.budgets) if (out / case.name).exists()]
    for case in done:
        rows, plans = case.read(out)
        workspace = workspace or prepare(Config.model_validate({**rows[0]["config"], "update": WHOLE, "threads": 1}))
        found = [figures(rows, method, plans.get(method, []), workspace) for method in study.methods]
        tables[case.name] = {"columns": list(found[0]), "rows": [list(each.values()) for each in found]}
        everything += [{"update": f"`{case.update}`", **each} for each in found]
        for each in found:
            summary[each["method"]].append(text(each))
    columns = ["method", *(f"{study.budgets[case.budget]:,} bytes" for case in done)]
    whole = {"columns": columns, "rows": list(summary.values())}
    by_update = {"columns": list(everything[0]), "rows": [list(each.values()) for each in everything]}
    words = [
        " ".join(Path(word).name if word.startswith("/") else word for word in each.command(0, study.methods))
        for each in done
    ]
    return write_result(
        name, "\n".join(words), {"default": by_update} if len(study.updates) > 1 else {"default": whole, **tables},
        machine=rows[0].get("machine") or NOT_RECORDED, versions=rows[0]["versions"],
        threads=rows[0]["config"]["threads"], seeds=sorted({row["seed"] for row in rows if "seed" in row}), commit=commit(),
    )  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "record"])
    parser.add_argument("out", type=Path, help="a folder for each table's runs")
    parser.add_argument("--tables", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--methods", nargs="+", help="run these alone, where a table has them [all]")
    parser.add_argument("--budgets", nargs="+", help="of these alone, where a table has them [all]")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    given = parser.parse_args()
    for name in given.tables:
        study = STUDIES[name]
        if given.what == "run":
            run(given.out / name, cases(study, given.budgets or study.budgets), given.seeds, given.methods)
        else:
            print(record(name, given.out / name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
