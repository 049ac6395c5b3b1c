"""All figures of a case over its seeds: the row behind the tables, the CSV file and the report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedact.reports.comparison.cases import Case
from fedact.reports.run.accounts import budget_held
from fedact.reports.run.scores import last_round, mean, standard_error_of

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SHARE = 0.95
"""Default target of rounds_to_target, as a share of the best final accuracy."""
Figures = dict[str, Any]


def target_accuracy(cases: Sequence[Case]) -> float:
    """Return a share of the best final accuracy, the mean over seeds; baselines set no target, where there are methods."""
    methods = [case for case in cases if case.baseline is None] or cases
    finals = [last_round(case.rounds)["accuracy"].astype(float) for case in methods]
    return DEFAULT_SHARE * max((float(final.mean()) for final in finals if len(final)), default=0.0)


def figures_of(case: Case, target: float) -> Figures:
    """Return a case's figures by name, None for one that no row has; bytes are those of the largest client and round.

    accuracy: the score of the global model at the end, whatever the task calls it, the mean over seeds; accuracy_std: their
    sample standard deviation. accuracy_standard_error: binomial, of one seed's test examples; None for a mean IoU.
    forgotten: the fall since round 0 on classes that no client holds, a share.
    target: the score that rounds_to_target asks for, the mean over seeds of the first round that reaches it; None where a
    seed does not.
    """
    seconds, statuses = mean(case.clients["seconds"]), case.clients["status"].value_counts()
    return {
        "case": case.label,
        "method": case.method,
        "run": str(case.run.path),
        "seeds": len(case.seeds),
        "rounds": int(case.rounds.groupby("seed")["round"].max().min()),
        **_scores(case, target),
        **_costs(case),
        **_over_steps(case, "paper_bytes"),
        **_over_steps(case, "saved_bytes"),
        "seconds_an_epoch": None if seconds is None else seconds / case.run.config.get("local_epochs", 1),
        "budget_held": budget_held(case.clients, case.run.config.get("scope", "saved")),
        "client_rows": ", ".join(f"{count} {status}" for status, count in statuses.items()) or "none",
    }


def _scores(case: Case, target: float) -> Figures:
    last = last_round(case.rounds)
    finals, first = last["accuracy"].astype(float), case.rounds[case.rounds["round"] == 0]
    examples = mean(last["test_examples"])
    reached = case.rounds[case.rounds["accuracy"] >= target].groupby("seed")["round"].min()
    return {
        "accuracy_before": mean(first["accuracy"]),
        "accuracy": mean(finals),
        "accuracy_std": None if len(finals.dropna()) < 2 else float(finals.std()),
        "accuracy_standard_error": standard_error_of(case.run, last),
        "test_examples": None if examples is None else int(examples),
        "client_accuracy_before": mean(first["client_accuracy"]),
        "client_accuracy": mean(last["client_accuracy"]),
        "held_out_client_accuracy": mean(last["held_out_client_accuracy"]),
        "worst_held_out_client_accuracy": mean(last["worst_held_out_client_accuracy"]),
        "unheld_accuracy_before": mean(first["unheld_accuracy"]),
        "unheld_accuracy": mean(last["unheld_accuracy"]),
        "forgotten": mean(last["forgotten"]),
        "accuracy_best": mean(case.rounds.groupby("seed")["accuracy"].max()),
        "loss": mean(last["loss"]),
        "mean_client_accuracy": mean(last_round(case.rounds, "mean_client_accuracy")["mean_client_accuracy"]),
        "worst_client_accuracy": mean(last_round(case.rounds, "worst_client_accuracy")["worst_client_accuracy"]),
        "target_accuracy": target,
        "rounds_to_target": float(reached.mean()) if len(reached) == len(case.seeds) else None,
    }


def _costs(case: Case) -> Figures:
    """Return bytes, operations and seconds; of the plans of several budgets the largest."""
    names = ("peak_bytes", "saved_bytes", "device_bytes", "floor_bytes", "state_bytes", "paper_bytes")
    most = {name: None if case.clients[name].dropna().empty else int(case.clients[name].max()) for name in names}
    vanilla = _of_plans(case, "vanilla_saved_bytes")
    flops, plain = _of_plans(case, "step_flops"), _of_plans(case, "vanilla_step_flops")
    return {
        **most,
        "times_floor": most["peak_bytes"] / most["floor_bytes"] if most["peak_bytes"] and most["floor_bytes"] else None,
        "vanilla_saved_bytes": vanilla,
        "times_less_than_vanilla": vanilla / most["saved_bytes"] if vanilla and most["saved_bytes"] else None,
        "budget_bytes": _of_plans(case, "budget_bytes"),
        "trained_layers": _of_plans(case, "layers"),
        "micro_batch": _of_plans(case, "micro_batch"),
        "recompute": case.recompute,
        "step_flops": flops,
        "flops_ratio": flops / plain if flops and plain else None,
        "expected_error": _of_plans(case, "expected_error"),
        "upload_bytes": _of_a_seed(case.clients, "upload_bytes"),
        "download_bytes": _of_a_seed(case.clients, "download_bytes"),
        "seconds": _of_a_seed(case.rounds, "seconds"),
        "seconds_a_round": mean(case.rounds[case.rounds["round"] > 0]["seconds"]),
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


def _of_plans(case: Case, name: str) -> Any:
    return max((plan[name] for plan in case.plans.values() if plan.get(name) is not None), default=None)


def _of_a_seed(rows: "pd.DataFrame", name: str) -> float | None:
    """Return a sum over clients or rounds, the mean over seeds."""
    return None if rows[name].dropna().empty else float(rows[name].astype(float).groupby(rows["seed"]).sum().mean())
