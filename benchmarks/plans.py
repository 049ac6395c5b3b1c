"""The most convolutions that each method trains under a budget: tables of docs/planner.md (ImageNet weights, CIFAR-10).

python benchmarks/plans.py                      plan and write results/plans_512KB.json and results/plans_peak.json
python benchmarks/plans.py --case plans_peak    one of them; --method NAME: of this method alone, repeat for more
"""

import argparse
import os
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from plan_seconds import network
from runs import IMAGENET, every_method
from torch import Tensor, nn

import fedact
from fedact.config.plan import Plan
from fedact.measure.gradient_error import gradients
from fedact.storage.machine import machine
from results import commit, write_result

DEPTHS = (52, 40, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1, 0)
METHODS = (*every_method(), "hosvd:variance=0.8", "asi:variance=0.8", "svd:variance=0.8")
Batch = tuple[Tensor, Tensor]


class Case(NamedTuple):
    """A budget, what it bounds, and the pixels of the images and their number in a batch."""

    budget: str
    scope: str
    pixels: int
    batch: int


CASES = {"plans_512KB": Case("512KB", "saved", 224, 8), "plans_peak": Case("512KB", "peak", 64, 8)}


def deepest(model: nn.Module, example: Batch, method: str, case: Case) -> Plan:
    """Return the plan with the most layers, of DEPTHS, that a method has within the budget."""
    at = cache(lambda depth: fedact.make_plan(model, case.budget, example, method, depth, case.scope))

    def fits(depth: int) -> bool:
        return bool(at(depth).status != "skipped" and at(depth).layers == depth)

    # Fewer layers never hold more.
    return at(DEPTHS[min(bisect_left(DEPTHS, True, key=fits), len(DEPTHS) - 1)])


def cosines(model: nn.Module, plan: Plan, batch: Batch) -> list[float]:
    """Return each trained weight's gradient cosine under the plan with plain training's."""
    ours = gradients(fedact.apply(model, plan), batch, micro_batch=plan.micro_batch)
    exact = gradients(fedact.compress(model, "exact", layers=plan.layers), batch, micro_batch=1)
    return [float(F.cosine_similarity(ours[name].flatten(), g.flatten(), dim=0)) for name, g in exact.items() if g.dim() > 1]


def row(plan: Plan, method: str, least: str) -> dict[str, Any]:
    """Return a plan's line of the table."""
    sizes = {"peak bytes": plan.peak_bytes, "saved bytes": plan.saved_bytes}
    in_streams = "-" if plan.room_bytes is None else f"{plan.room_bytes:,}"
    shape = {"micro-batch": plan.micro_batch, "recompute": plan.recompute, "room of streams": in_streams}
    return {"method": method, "convolutions": plan.layers or plan.status, **sizes, **shape, "lowest cosine": least}


def batches(case: Case, data: Path) -> list[Batch]:
    """Return the server's batch and a client's, scaled as these weights were trained."""
    with np.load(data / "cifar10.npz") as arrays:
        pixels, labels = arrays["x_train"][: 2 * case.batch], arrays["y_train"][: 2 * case.batch]
    x = F.interpolate(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, case.pixels, mode="bilinear")
    x = x.contiguous(memory_format=torch.channels_last)
    return list(zip(x.split(case.batch), torch.from_numpy(labels).long().flatten().split(case.batch), strict=True))


def table(case: Case, data: Path, methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Return a table of each method's deepest plan, and its gradient on other images than it was made from."""
    model, (server, client) = network(data / IMAGENET).eval(), batches(case, data)
    rows = []
    for method in methods:
        plan = deepest(model, server, method, case)
        least = "-" if plan.status == "skipped" else f"{min(cosines(model, plan, client)):.3f}"
        rows.append(row(plan, method, least))
        print(rows[-1], flush=True)
    return {"columns": list(rows[0]), "rows": [list(each.values()) for each in rows]}


def main() -> int:
    """Plan and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="plan this alone [both]")
    parser.add_argument("--method", action="append", help="plan for this alone [every method]")
    given = parser.parse_args()
    names, methods = given.case or list(CASES), given.method or METHODS
    data = Path(os.environ.get("FEDACT_DATA") or Path.home() / ".cache/fedact/data")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    versions = {"python": sys.version.split()[0], "torch": version("torch")}
    facts: dict[str, Any] = {"machine": machine(), "versions": versions, "threads": 1, "seeds": [0], "commit": commit()}
    for name in names:
        flags = "".join(f" --method {method}" for method in given.method or ())
        command = f"python benchmarks/plans.py --case {name}{flags}"
        print(write_result(name, command, {"default": table(CASES[name], data, methods)}, **facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
