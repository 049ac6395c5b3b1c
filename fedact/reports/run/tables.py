"""A run in the terminal: its progress, the table at its end, plans and the partition of a dry run."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedact.config.choice import Trial, choice_text
from fedact.config.plan import Plan
from fedact.config.sizes import format_bytes
from fedact.config.updates import WHOLE
from fedact.reports.method_label import method_label
from fedact.reports.run.accounts import byte_rows, fullest_client, span, times_floor
from fedact.reports.run.scores import score_parts
from fedact.reports.safe_text import escaped
from fedact.reports.saved_tensors import made_again, saved_tensors
from fedact.storage.rows import Row
from fedact.storage.run import Run

if TYPE_CHECKING:
    from fedact.data.partition.base import HeldOutParts

MOST_CLIENTS, FIRST_CLIENTS = 200, 20
"""The most clients that have a line each, and how many of more than that have one."""


class LiveReport:
    """One bar a method on a terminal, one plain line a round elsewhere. Use as a context manager."""

    def __init__(
        self,
        console: Console,
        methods: Iterable[str],
        rounds: int,
        done: dict[str, int],
        score: str = "accuracy",
        scope: str = "peak",
    ) -> None:
        """score: the name of the run's score. scope: of the budgets."""
        self.console = console
        self.score, self.scope = score, scope
        self.rounds = rounds
        self.left = sum(rounds - done.get(method, -1) for method in methods)
        self.times: list[float] = [time.monotonic()]
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(None),
            TextColumn("{task.fields[state]}", markup=False), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks = {
            method: self.progress.add_task(
                method_label(method), total=rounds + 1, completed=done.get(method, -1) + 1, state="waiting"
            )
            for method in methods
        }

    def __enter__(self) -> "LiveReport":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_round(self, row: Row, clients: list[Row]) -> None:
        """Show a finished round."""
        self.left -= 1
        self.times.append(time.monotonic())
        reached = "-" if row.get("accuracy") is None else f"{100 * row['accuracy']:.1f} %"
        state = f"round {row['round']}/{self.rounds}  {self.score} {reached}  {fullest_client(clients, self.scope)}"
        self.progress.update(self.tasks[row["method"]], advance=1, state=state)
        if not self.console.is_terminal:
            left = ""
            if self.left and len(self.times) > 2:
                # The first round was only an evaluation: it says nothing of those left.
                seconds = (self.times[-1] - self.times[1]) / (len(self.times) - 2)
                left = f"  {seconds * self.left:.0f} s left"
            self.console.print(f"{method_label(row['method'])}  {state}{left}", soft_wrap=True, highlight=False)


def summary(run: Run) -> Table:
    """Return the table at the end of a run: the quantities as rows, the methods side by side."""
    table = Table(title="What the clients learned, and what it took (bytes of the largest client)", title_justify="left")
    table.add_column("", overflow="fold")
    columns = []
    for method in dict.fromkeys(run.rounds["method"]):
        table.add_column(method_label(method), justify="right", overflow="fold")
        columns.append(run_figures(run, str(method)))
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "-") for column in columns))
    return table


COUNTED = "convolutions"
"""What plans of older runs counted as trained layers."""


def run_figures(run: Run, method: str) -> dict[str, str]:
    """Return one method's column of the table at the end of a run: the text of each quantity by its name."""
    rounds = run.rounds[run.rounds["method"] == method]
    clients = run.clients[run.clients["method"] == method]
    by_key = run.plans.get(method, {})
    plans = list(by_key.values())
    replanned = sorted({int(key.rpartition("@")[2]) for key in by_key if "@" in key})
    by_round = rounds.dropna(subset=["accuracy"]).groupby("round")["accuracy"].mean() * 100
    statuses, faults = clients["status"].value_counts(), clients["fault"].value_counts()
    return {
        f"{run.score_name} before": f"{by_round.iloc[0]:.1f} %" if len(by_round) else "no score",
        f"{run.score_name} after": f"{by_round.iloc[-1]:.1f} %" if len(by_round) else "no score",
        **score_parts(run, rounds),
        **byte_rows(clients, plans, run.config.get("scope", "saved")),
        "plain training of the same layers keeps": span(plans, "vanilla_saved_bytes"),
        "what gave way": _by_budget(plans, lambda plan: plan["reason"] or "nothing"),
        "saved tensors": _by_budget(plans, lambda plan: saved_tensors(str(kept["method"]) for kept in plan["kept"])),
        "made again": _by_budget(plans, lambda plan: made_again(plan.get("recompute"), plan.get("room_bytes"))),
        "new plans during training": f"before round {', '.join(map(str, replanned))}" if replanned else "none",
        f"trained {plans[0].get('counted', COUNTED) if plans else COUNTED}": span(plans, "layers"),
        **_update(plans),
        "learning rate": rates(plans, run.config.get("lr")),
        "chosen": chosen(plans),
        "weights": span(plans, "weight_bytes"),
        "gradients": span(plans, "gradient_bytes"),
        "optimizer": span(plans, "optimizer_bytes"),
        **({"copies": span(plans, "copy_bytes")} if any(plan.get("copy_bytes") for plan in plans) else {}),
        "bytes sent": format_bytes(clients["upload_bytes"].fillna(0).sum()),
        "clients x rounds": ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none",
        "simulated faults": ", ".join(f"{count} {fault}" for fault, count in faults.items()) or "none",
    }


def _update(plans: list[Row]) -> dict[str, str]:
    """Return what of the trained layers is trained, where that is not the whole of them."""
    parts = dict.fromkeys(plan.get("update", WHOLE) for plan in plans)
    return {} if set(parts) <= {WHOLE} else {"what of them": ", ".join(parts)}


def listing(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str | Text, ...]], lines: bool = False) -> Table:
    """Return a plain table, with lines between the rows where a row takes several."""
    table = Table(title=title, title_justify="left", show_lines=lines)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*row)
    return table


def plan_table(plan: Plan) -> Table:
    """Return a plan as a table, a row for each saved tensor."""
    what = f"{method_label(plan.method)} in {format_bytes(plan.budget_bytes)} {plan.scope} bytes: {plan.status}"
    accounts = (("peak", plan.peak_bytes), ("saved", plan.saved_bytes), ("device", plan.device_bytes))
    floor = f"floor {format_bytes(plan.floor_bytes)} (the peak is {times_floor(plan.peak_bytes, plan.floor_bytes)})"
    sizes = ", ".join([*(f"{name} {format_bytes(size)}" for name, size in accounts), floor])
    sizes += f", micro-batch {plan.micro_batch}, recompute {plan.recompute}"
    gave_way = f"gave way: {plan.reason}" if plan.reason else "nothing gave way"
    tensors = f"saved tensors: {saved_tensors(kept.method for kept in plan.kept)}"
    rows = [
        (kept.name, "x".join(map(str, kept.shape)), method_label(kept.method), format_bytes(kept.cap_bytes))
        for kept in plan.kept
    ]
    if plan.lr is not None:
        tried = f": {choice_text(plan.trials, plan.layers)}" if plan.trials else ", without a trial"
        tensors += f"\nlearning rate {plan.lr:g}{tried}"
    return listing(f"{what}\n{sizes}\n{gave_way}\n{tensors}", ("input of", "shape", "method", "bytes at most"), rows)


def partition_table(
    labels: np.ndarray, parts: "HeldOutParts", by: str = "class", names: Sequence[str] | None = None
) -> Table:
    """Return clients with their numbers of examples, by class; of many clients, the first ones and the range of the others.

    by: what the labels number, class or source. names: of the clients, where they have some.
    """
    sizes = parts.sizes()
    listed = len(parts) if len(parts) <= MOST_CLIENTS else FIRST_CLIENTS
    # A Text is taken letter by letter: a name may hold what rich reads as markup.
    rows: list[tuple[str | Text, ...]] = [
        (
            Text(escaped(names[client])) if names else str(client),
            *(str(size[client]) for size in sizes),
            _by_class(labels[parts.whole[client]]),
        )
        for client in range(listed)
    ]
    if listed < len(parts):
        others = labels[parts.whole.order[parts.whole.bounds[listed] :]]
        spans = (f"{size[listed:].min()} to {size[listed:].max()}" for size in sizes)
        rows.append((f"{len(parts) - listed:,} others", *spans, f"together {_by_class(others)}"))
    return listing("Who holds what", ("client", "to train", "held out", f"examples by {by}"), rows)


def _by_class(labels: np.ndarray) -> str:
    classes, counts = np.unique(labels, return_counts=True)
    return ", ".join(f"{label}: {count}" for label, count in zip(classes, counts, strict=True))


def rates(plans: list[Row], given: Any) -> str:
    """Return the plans' learning rates; given: the config's, for plans of runs before there were any in plans."""
    found = sorted({plan["lr"] for plan in plans if plan.get("lr")}) or [given]
    return " to ".join(
        f"{rate:g}" if isinstance(rate, float) else str(rate) for rate in dict.fromkeys([found[0], found[-1]])
    )


def chosen(plans: list[Row]) -> str:
    """Return by which trials the plans' layers and learning rates were chosen."""
    tried = next((plan["trials"] for plan in plans if plan.get("trials")), None)
    if tried is None:
        return "without a trial"
    return choice_text([Trial(**row) for row in tried], max(plan["layers"] for plan in plans))


def _by_budget(plans: list[Row], text: Callable[[Row], str]) -> str:
    """Return the text of the last plan of each budget, once where all have the same."""
    last = {plan["budget_bytes"]: text(plan) for plan in plans}
    if len(set(last.values())) == 1:
        return next(iter(last.values()))
    ordered = sorted(last, key=lambda size: (size is None, size))
    return "; ".join(f"at {'no bound' if size is None else format_bytes(size)}: {last[size]}" for size in ordered)
