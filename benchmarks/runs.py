"""Runs of fedact's commands that benchmarks measure, beside a fixed plain PyTorch step that says how fast the machine is."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGENET = "weights/mobilenet_v2-imagenet.safetensors"
THREADS = min(2, os.cpu_count() or 1)

Figures = dict[str, float]
Rows = list[dict[str, Any]]

TOO_SLOW = ("tucker",)
"""Methods of fedact's table that take hours."""


class Skipped(Exception):
    """A case that cannot be measured here, with the reason."""


@dataclass(frozen=True)
class Bench:
    """The checkout that is measured, an empty folder for its runs, and whether cases are small."""

    tree: Path
    folder: Path
    quick: bool

    def command(self, name: str, *arguments: object) -> float:
        """Run ``python -m fedact.NAME`` with these arguments and return its seconds; raises RuntimeError where it fails."""
        begin, settings = time.perf_counter(), {"PYTHONPATH": str(self.tree), "FEDACT_CACHE": str(self.folder / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", f"fedact.{name}", *map(str, arguments)],
            cwd=self.folder, env=os.environ | settings, capture_output=True, text=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError(f"fedact.{name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
        return seconds

    def script(self, name: str, *arguments: object) -> Any:
        """Run a script that lies beside this file and return the JSON that it prints; raises RuntimeError where it fails."""
        command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / name), *map(str, arguments)]
        settings = os.environ | {"PYTHONPATH": str(self.tree)}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout)

    def simulate(self, name: str, *arguments: object) -> tuple[float, Rows]:
        """Return the seconds of a run of ``fedact.simulate`` and the rows of its records."""
        seconds = self.command("simulate", *arguments, "--out", self.folder / name)
        lines = (self.folder / name / "records.jsonl").read_text().splitlines()
        return seconds, [json.loads(line) for line in lines]

    def json(self, name: str, *arguments: object) -> tuple[float, Any]:
        """Return the seconds of a command that writes --json, and what it wrote."""
        file = self.folder / f"{name}.json"
        return self.command(name, *arguments, "--json", file), json.loads(file.read_text())


def every_method() -> tuple[str, ...]:
    """Return ``auto`` and every method of fedact's table without settings, but for those that take hours."""
    # Loads torch, which the benchmarks' --help can do without.
    from fedact.compression import AUTO, METHODS

    return (AUTO, *(name for name in METHODS if name not in TOO_SLOW))


def photographs() -> tuple[object, ...]:
    """Return the settings for CIFAR-10 and ImageNet weights; raises Skipped where they are not there."""
    data = Path(os.environ.get("FEDACT_DATA") or Path.home() / ".cache/fedact/data").resolve()
    if missing := [name for name in ("cifar10.npz", IMAGENET) if not (data / name).is_file()]:
        raise Skipped(f"no {missing[0]} in {data}")
    return "--dataset", "npz", "--data-dir", data / "cifar10.npz", "--model", "mobilenet_v2", "--weights", data / IMAGENET


@contextmanager
def started(bench: Bench, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a run of ``fedact.simulate`` in the background, and wait for its end; raises RuntimeError where it fails."""
    settings = os.environ | {"PYTHONPATH": str(bench.tree), "FEDACT_CACHE": str(bench.folder / "cache")}
    command = [sys.executable, "-m", "fedact.simulate", *map(str, arguments)]
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        yield running
    if running.returncode:
        raise RuntimeError(f"fedact.simulate ended with {running.returncode}")


def rows_of(out: Path) -> Rows:
    """Return the whole rows of a run's records, none before it has begun."""
    records = out / "records.jsonl"
    return [json.loads(line) for line in records.read_text().splitlines(keepends=True) if line.endswith("\n")]


def count_rounds(out: Path) -> int:
    """Return how many rounds a run has finished, the evaluation before the first one included."""
    return sum(row["kind"] == "round" for row in rows_of(out)) if (out / "records.jsonl").exists() else 0


def round_seconds(rows: Rows) -> list[float]:
    """Return the seconds of every round, the evaluation before the first one included."""
    return [row["seconds"] for row in rows if row["kind"] == "round"]


def clients_seconds(rows: Rows, method: str, last: int) -> float:
    """Return the seconds that all clients of a method's last round trained."""
    clients = [row for row in rows if row["kind"] == "client" and row["round"] == last]
    return sum(row["seconds"] for row in clients if row["method"].split(":")[0] == method)


def resident_bytes(pid: int) -> int:
    """Return the memory of a process and its children that no other process shares, in bytes (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        pids = [pid, *map(int, children.read_text().split())]
        rolls = [Path(f"/proc/{each}/smaps_rollup").read_text().splitlines() for each in pids]
    except OSError:
        return 1
    return 1024 * sum(int(line.split()[1]) for lines in rolls for line in lines if line.startswith("Pss:"))


def anchor_seconds() -> float:
    """Return the median seconds of a plain PyTorch training step: MobileNetV2 of width 0.35, 16 images at 64 px."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    model, x, y, seconds = mobilenet_v2(width_mult=0.35), torch.rand(16, 3, 64, 64), torch.arange(16), []
    for _ in range(12):
        begin = time.perf_counter()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - begin)
    return median(seconds[2:])
