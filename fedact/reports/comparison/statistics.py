"""Every figure of a case, over its seeds: the one row that the table, the CSV file and the report are made of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedact.reports.comparison.cases import Case
from fedact.reports.run.tables import budget_held

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SHARE = 0.95
"""Of the best final accuracy: what "rounds to an accuracy" asks for where nothing was asked."""
Figures = dict[str, Any]


def target_accuracy(cases: Sequence[Case]) -> float:
    """Return a share of the best final accuracy, the mean over seeds."""
    return DEFAULT_SHARE * max((float(_last(case)["accuracy"].mean()) for case in cases if len(_last(case))), default=0.0)


def figures_of(case: Case, target: float) -> Figures:
    """Return a case's figures, None where there is nothing to tell; bytes are those of the largest client and round.

    accuracy: the score of the global model at the end, whatever the task calls it, the mean over seeds; accuracy_std: their
    sample standard deviation.
    rounds_to_target: the mean over seeds of the first round that reaches the target; None where one does not.
    """
    last = _last(case)
    return {
        "case": case.label,
        "method": case.method,
        "run": str(case.run.path),
        "seeds": len(case.seeds),
        "rounds": int(case.rounds.groupby("seed")["round"].max().min()),
        "accuracy_before": _mean(case.rounds[case.rounds["round"] == 0]["accuracy"]),
        "accuracy": _mean(last["accuracy"]),
        "accuracy_std": _std(last["accuracy"]),
        "accuracy_best": _mean(case.rounds.groupby("seed")["accuracy"].max()),
        "loss": _mean(last["loss"]),
        "worst_client_accuracy": _mean(_last(case, "worst_client_accuracy")["worst_client_accuracy"]),
        "target_accuracy": target,
        "rounds_to_target": _rounds_to(case, target),
        **_bytes(case),
        **_plans(case),
        "upload_bytes": _a_seed(case.clients, "upload_bytes"),
        "download_bytes": _a_seed(case.clients, "download_bytes"),
        "seconds": _a_seed(case.rounds, "seconds"),
        "seconds_a_round": _mean(case.rounds[case.rounds["round"] > 0]["seconds"]),
        **_over_steps(case, "paper_bytes"),
        **_over_steps(case, "saved_bytes"),
        "seconds_an_epoch": _an_epoch(case),
        "budget_held": budget_held(case.clients, case.run.config.get("scope", "saved")),
        "client_rows": _counts(case.clients["status"]),
    }


def _last(case: Case, name: str = "accuracy") -> "pd.DataFrame":
    """Return each seed's last round in which this was measured."""
    measured = case.rounds.dropna(subset=[name])
    return measured.loc[measured.groupby("seed")["round"].idxmax()]


def _rounds_to(case: Case, target: float) -> float | None:
    reached = case.rounds[case.rounds["accuracy"] >= target].groupby("seed")["round"].min()
    return float(reached.mean()) if len(reached) == len(case.seeds) else None


def _bytes(case: Case) -> Figures:
    names = ("saved_bytes", "state_bytes", "peak_bytes", "paper_bytes")
    most = {name: _most(case.clients[name]) for name in names}
    vanilla = _most_of(case, "vanilla_saved_bytes")
    ratio = vanilla / most["saved_bytes"] if vanilla and most["saved_bytes"] else None
    return {**most, "vanilla_saved_bytes": vanilla, "times_less_than_vanilla": ratio}


def _plans(case: Case) -> Figures:
    """Return what the plans say; of several budgets the largest."""
    flops, plain = _most_of(case, "step_flops"), _most_of(case, "vanilla_step_flops")
    return {
        "budget_bytes": _most_of(case, "budget_bytes"),
        "trained_layers": _most_of(case, "layers"),
        "micro_batch": _most_of(case, "micro_batch"),
        "step_flops": flops,
        "flops_ratio": flops / plain if flops and plain else None,
        "expected_error": _most_of(case, "expected_error"),
    }


def _over_steps(case: Case, name: str) -> Figures:
    """Return the mean and the standard deviation over every step of every client, and an epoch's steps added up."""
    columns = ["steps", f"{name}_mean", f"{name}_std"]
    rows = case.clients[[*columns, "seed", "client", "round"]].dropna().astype(float)
    if rows.empty:
        return dict.fromkeys((f"{name}_mean", f"{name}_std", f"{name}_an_epoch"))
    steps, means, spreads = (rows[column] for column in columns)
    mean = (steps * means).sum() / steps.sum()
    square = (steps * (spreads**2 + means**2)).sum() / steps.sum()
    epochs = len(rows) * case.run.config.get("local_epochs", 1)
    return {
        f"{name}_mean": float(mean),
        f"{name}_std": float(max(square - mean**2, 0) ** 0.5),
        f"{name}_an_epoch": float((steps * means).sum() / epochs),
    }


def _an_epoch(case: Case) -> float | None:
    """Return the mean seconds of a client's pass over its examples."""
    seconds = _mean(case.clients["seconds"])
    return None if seconds is None else seconds / case.run.config.get("local_epochs", 1)


def _most_of(case: Case, name: str) -> Any:
    return max((plan[name] for plan in case.plans.values() if plan.get(name) is not None), default=None)


def _most(values: "pd.Series[Any]") -> int | None:
    return None if values.dropna().empty else int(values.max())


def _mean(values: "pd.Series[Any]") -> float | None:
    return None if values.dropna().empty else float(values.astype(float).mean())


def _std(values: "pd.Series[Any]") -> float | None:
    return None if len(values.dropna()) < 2 else float(values.astype(float).std())


def _a_seed(rows: "pd.DataFrame", name: str) -> float | None:
    """Return a sum over clients or rounds, the mean over seeds."""
    return None if rows[name].dropna().empty else float(rows[name].astype(float).groupby(rows["seed"]).sum().mean())


def _counts(statuses: "pd.Series[str]") -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.value_counts().items()) or "none"
