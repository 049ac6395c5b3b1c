"""How fast fedact is, beside what it is to reach; eight minutes on two quiet cores.

python benchmarks/speed.py                       measure this tree and print the table
python benchmarks/speed.py --case "main job"     one case; repeat for more
python benchmarks/speed.py --record              also write results/speed.json, whose table docs/speed.md shows
python benchmarks/speed.py --tree DIR            measure another checkout

Every case stands between two timings of the same plain PyTorch step as in standing.py; a machine on which that step takes
other than ANCHOR seconds is a faster or a slower one, and seconds are given as they would be there too.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

from runs import (
    ROOT,
    Bench,
    Figures,
    Skipped,
    anchor_seconds,
    clients_seconds,
    count_rounds,
    photographs,
    resident_bytes,
    round_seconds,
    rows_of,
    started,
)
from standing import METHODS

from results import write_result

ANCHOR = 0.030
"""Seconds of the anchor on the machine that the figures to reach were set on: two quiet cores."""
BUSY = "while True: pass"
PLANS: dict[str, tuple[float, tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "224 px": (5, ("hosvd", "auto"), (("saved", "4MB"), ("peak", "32MB"))),
    "digits": (1.5, ("hosvd", "auto", "transform", "asi"), (("saved", "512KB"), ("peak", "4MB"))),
}
"""By images: seconds to reach, methods, and budgets with their scopes."""

TO_REACH: dict[str, dict[str, float]] = {
    "main job": {"seconds, first time": 45, "seconds, then": 30},
    "six methods, 8 clients, 2 rounds": {"seconds": 60},
    "CIFAR-10 at 128 px, 20 clients, 5 rounds, 8 layers": {"seconds": 80},
    "steady round, of a plain loop's time": {
        "1 worker": 0.3, "1 worker, no prefix cache": 0.5, "2 workers": 0.17, "2 workers, no prefix cache": 0.3,
    },
    "round of hosvd:variance=0.8, of exact's time": {"8 layers": 3, "32 layers": 3},
    "2 workers, times as fast as 1": {"rounds": 1.8},
    "224 px, batch 16, of plain's time": {
        f"{layers} layers, {method}": ratio
        for layers in (2, 4, 6)
        for method, ratio in (("hosvd:variance=0.8", 1.5), ("asi", 0.9), ("transform:variance=0.96", 1.2))
    },
    "plans, 52 layers, processor seconds": {
        f"{name}, {method}, {budget} {scope}": goal
        for name, (goal, methods, budgets) in PLANS.items()
        for method in methods
        for scope, budget in budgets
    },
    "command to first round, tiny model": {"seconds": 2.5},
    "1,000 clients, 100 a round, 100 rounds, 2 workers": {
        "last 30 rounds, of the first 30's time": 1.1, "growth of memory": 1.1,
    },
    "busy program on each core, of the quiet time": {"main job": 3},
}  # fmt: skip
MORE_IS_BETTER = ("2 workers, times as fast as 1",)


def main_job(bench: Bench) -> Figures:
    """The main job, with nothing cached and again."""
    first, _ = bench.simulate("main", "--clients", 20, "--budget", "512KB")
    then, _ = bench.simulate("main-again", "--clients", 20, "--budget", "512KB")
    return {"seconds, first time": first, "seconds, then": then}


def six_methods(bench: Bench) -> Figures:
    """Six methods under a budget on the digits; the pretrained weights are cached."""
    named = [part for method in METHODS for part in ("--method", method)]
    bench.simulate("six-warm", "--clients", 8, "--rounds", 1, "--method", "exact", "--budget", "512KB")
    return {"seconds": bench.simulate("six", *named, "--clients", 8, "--rounds", 2, "--budget", "512KB")[0]}


def cifar10(bench: Bench) -> Figures:
    """2,000 images of CIFAR-10 at 128 px, with ImageNet weights."""
    size = ("--resolution", 128, "--max-examples", 2000, "--max-test-examples", 1000, "--layers", 8)
    return {"seconds": bench.simulate("cifar10", *photographs(), *size, "--clients", 20, "--rounds", 5)[0]}


def steady_round(bench: Bench) -> Figures:
    """A round after the first beside a plain PyTorch loop of one thread: last block, 32 px, batch 16, 1 epoch."""
    figures: Figures = {}
    for workers in (1, 2):
        data = ("--dataset", "synthetic", "--max-examples", 1314, "--partition", "iid", "--resolution", 32, "--clients", 20)
        network = ("--weights", "none", "--width", 1, "--layers", 3, "--method", "exact", "--budget", "none")
        training = ("--rounds", 7, "--batch-size", 16, "--local-epochs", 1, "--threads", 1, "--workers", workers)
        _, found = bench.json("bench", *data, *network, *training)
        name = f"{workers} worker{'s' if workers > 1 else ''}"
        cached, uncached = found["rounds"]
        figures |= {name: cached["ratio"], f"{name}, no prefix cache": uncached["ratio"]}
    return figures


def given_variance(bench: Bench) -> Figures:
    """The paper's setting within the budget beside the exact gradient of the same layers."""
    figures: Figures = {}
    for layers in (8, 32):
        size = ("--clients", 8, "--rounds", 3, "--layers", layers, "--budget", "512KB", "--workers", 1)
        _, rows = bench.simulate(f"variance-{layers}", *size, "--method", "exact", "--method", "hosvd:variance=0.8")
        exact, given = (clients_seconds(rows, method, last=3) for method in ("exact", "hosvd"))
        figures[f"{layers} layers"] = given / exact
    return figures


def two_workers(bench: Bench) -> Figures:
    """Seconds of the main job's rounds after the first, by one process and by two."""
    seconds = {}
    for workers in (1, 2):
        _, rows = bench.simulate(f"workers-{workers}", "--clients", 20, "--budget", "512KB", "--workers", workers)
        seconds[workers] = median(round_seconds(rows)[2:])
    return {"rounds": seconds[1] / seconds[2]}


def large_images(bench: Bench) -> Figures:
    """Forward and backward pass from the first trained layer on, at 224 px, one thread."""
    figures: Figures = {}
    methods = ("hosvd:variance=0.8", "asi", "transform:variance=0.96")
    named = [part for method in ("vanilla", *methods) for part in ("--method", method)]
    for layers in (2, 4, 6):
        size = ("--resolution", 224, "--max-examples", 200, "--layers", layers, "--batch-size", 16, "--threads", 1)
        _, found = bench.json("bench", *photographs(), *named, *size, "--batches", 1, "--draws", 2, "--steps", 15)
        rows = zip(methods, found["methods"][1:], strict=True)
        figures |= {f"{layers} layers, {method}": row["time_ratio"] for method, row in rows}
    return figures


def plans(bench: Bench) -> Figures:
    """Processor seconds of plans for all 52 convolutions of MobileNetV2 with ImageNet weights, batch 32, one thread."""
    # As they are: a busy machine takes longer for the anchor, and hardly for these.
    figures: Figures = bench.script("plan_seconds.py", Path(str(photographs()[3])).parent)
    return figures


def first_round(bench: Bench) -> Figures:
    """From the command to the row of the first round, with two clients and few examples; the median of five."""
    seconds = []
    for repeat in range(5):
        out = bench.folder / f"tiny-{repeat}"
        size = ("--clients", 2, "--rounds", 1, "--max-examples", 100, "--max-test-examples", 50, "--layers", 2, "--lr", 0.03)
        begin = time.perf_counter()
        with started(bench, *size, "--weights", "none", "--method", "exact", "--out", out) as running:
            while count_rounds(out) < 2 and running.poll() is None:
                time.sleep(0.005)
            seconds.append(time.perf_counter() - begin)
    return {"seconds": median(seconds)}


def many_clients(bench: Bench) -> Figures:
    """Time and memory of a long run with many clients: neither may grow with the rounds."""
    out, memory = bench.folder / "many", []
    size = ("--dataset", "synthetic", "--clients", 1000, "--rounds", 100, "--sample-fraction", 0.1)
    network = ("--width", 0.35, "--resolution", 32, "--weights", "none", "--layers", 2, "--lr", 0.03, "--method", "exact")
    with started(bench, *size, *network, "--workers", 2, "--out", out) as running:
        while running.poll() is None:
            if count_rounds(out) > 10:
                memory.append(resident_bytes(running.pid))
            time.sleep(0.5)
    seconds = round_seconds(rows_of(out))
    early, late = sum(seconds[2:32]), sum(seconds[-30:])
    growth = max(memory[-10:]) / max(memory[:10])
    return {"last 30 rounds, of the first 30's time": late / early, "growth of memory": growth, "seconds": sum(seconds)}


def busy_machine(bench: Bench) -> Figures:
    """The main job beside one busy program a core, of its time alone."""
    size = ("--clients", 20, "--budget", "512KB", "--rounds", 4)
    # The first run pretrains.
    _, quiet = (bench.simulate(name, *size)[0] for name in ("first", "quiet"))
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        return {"main job": bench.simulate("busy", *size)[0] / quiet}
    finally:
        for program in programs:
            program.kill()


CASES: dict[str, Callable[[Bench], Figures]] = dict(
    zip(
        TO_REACH,
        (main_job, six_methods, cifar10, steady_round, given_variance, two_workers, large_images, plans, first_round,
         many_clients, busy_machine),
        strict=True,
    )
)  # fmt: skip


def table(found: dict[str, Figures]) -> list[list[str]]:
    """Return the rows case, figure, to reach, measured, reached; seconds are judged as on the machine of ANCHOR."""
    rows = []
    for case, figures in found.items():
        for name, value in figures.items():
            goal = TO_REACH[case].get(name)
            there = value * ANCHOR / figures["anchor, seconds"] if name.startswith("seconds") else value
            reached = "" if goal is None else "yes" if (there >= goal if case in MORE_IS_BETTER else there <= goal) else "no"
            shown = f"{value:.2f}" if there == value else f"{value:.1f} ({there:.1f} there)"
            if name != "anchor, seconds":
                rows.append([case, name, "" if goal is None else f"{goal:g}", shown, reached])
    return rows


def main() -> int:
    """Measure, print, write; returns 1 where something failed to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write results/speed.json")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout that is measured [this one]")
    parser.add_argument("--case", action="append", choices=CASES, help="measure this alone; repeat for more [all]")
    given = parser.parse_args()
    found: dict[str, Figures] = {}
    failed = False
    for case in given.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            before = anchor_seconds()
            try:
                figures = CASES[case](Bench(given.tree.resolve(), Path(folder), quick=False))
                found[case] = {"anchor, seconds": (before + anchor_seconds()) / 2, **figures}
                for row in table({case: found[case]}):
                    print(" | ".join(row), flush=True)
            except Skipped as reason:
                print(f"{case}: skipped, {reason}", file=sys.stderr)
            except Exception as error:
                failed = True
                print(f"{case}: failed, {type(error).__name__}: {error}", file=sys.stderr)
    if given.record and not failed:
        record(found, given.tree)
    return int(failed)


def record(found: dict[str, Figures], tree: Path) -> None:
    """Write results/speed.json."""
    # Torch is loaded for the anchor anyway.
    from fedact.storage.machine import machine

    git = ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"]
    write_result(
        "speed",
        "python benchmarks/speed.py --record",
        {"default": {"columns": ["case", "figure", "to reach", "measured", "reached"], "rows": table(found)}},
        machine=machine(),
        versions={"python": sys.version.split()[0]} | {name: version(name) for name in ("torch", "flwr")},
        threads=1,
        seeds=[0],
        commit=subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
    )


if __name__ == "__main__":
    sys.exit(main())
