"""A run's score at the end: its standard error, and what it is made of."""

from typing import TYPE_CHECKING, Any

from fedact.config.baselines import LOCAL, baseline_of
from fedact.storage.rows import task_of
from fedact.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd


def score_parts(run: Run, rounds: "pd.DataFrame") -> dict[str, str]:
    """Return rows of the table at the end of a run: the score's standard error, on how many examples, and its two parts.

    rounds: of one method; of several seeds the mean is shown. A part is the score on the classes that clients hold, and on
    those that no client holds, each before the first round and after the last.
    """
    first, last = rounds[rounds["round"] == 0], last_round(rounds)
    examples, fall = mean(last["test_examples"]), mean(last["forgotten"])
    error = standard_error_of(run, last)
    return {
        "standard error": "-" if error is None else f"{100 * error:.1f} %",
        "test examples": "-" if examples is None else f"{examples:,.0f}",
        f"{run.score_name} on the clients' classes": _change(first, last, "client_accuracy"),
        f"{run.score_name} on classes no client holds": _change(first, last, "unheld_accuracy"),
        "forgotten of these": points(fall),
        **_own_examples(run, rounds),
        **_held_out_clients(run, first, last),
    }


def _own_examples(run: Run, rounds: "pd.DataFrame") -> dict[str, str]:
    """Return the row of the clients' scores on what each holds out; none of a run from before there was a mean."""
    last = last_round(rounds, "mean_client_accuracy")
    average, worst = mean(last["mean_client_accuracy"]), mean(last["worst_client_accuracy"])
    if average is None or worst is None:
        return {}
    return {f"{run.score_name} of clients on their own examples": f"{100 * average:.1f} % (worst {100 * worst:.1f} %)"}


def _held_out_clients(run: Run, first: "pd.DataFrame", last: "pd.DataFrame") -> dict[str, str]:
    """Return the rows of a run that has held-out clients; none of another."""
    examples = mean(last["held_out_client_examples"])
    if examples is None:
        return {}
    names = run.headers[0].get("held_out_clients") or ()
    return {
        f"{run.score_name} on the {len(names)} held-out clients": _change(first, last, "held_out_client_accuracy"),
        "the worst of these": _change(first, last, "worst_held_out_client_accuracy"),
        "their examples": f"{examples:,.0f}",
    }


def last_round(rounds: "pd.DataFrame", name: str = "accuracy") -> "pd.DataFrame":
    """Return each seed's last round in which this was measured."""
    measured = rounds.dropna(subset=[name])
    return measured.loc[measured.groupby("seed")["round"].idxmax()]


def standard_error_of(run: Run, last: "pd.DataFrame") -> float | None:
    """Return the standard error of a run's accuracy after its last rounds; None for a mean IoU, and in old records.

    Pixels of one scene are not independent of each other, so their number says nothing of a mean IoU's error; nor are
    several models' results on one example, so None for a mean over the clients' own models too.
    """
    own = any(baseline_of(str(method)) == LOCAL for method in last["method"])
    if own or task_of(run.config) == "segmentation":
        return None
    return standard_error(mean(last["accuracy"]), mean(last["test_examples"]))


def standard_error(accuracy: float | None, examples: float | None) -> float | None:
    """Return the binomial standard error of an accuracy, a share, on so many test examples; None where either is unknown.

    >>> round(standard_error(0.9, 400), 3)
    0.015
    """
    return (accuracy * (1 - accuracy) / examples) ** 0.5 if accuracy is not None and examples else None


def points(fall: float | None) -> str:
    """Return a difference of two shares as it stands in a table."""
    return "-" if fall is None else f"{100 * fall:.1f} points"


def mean(values: Any) -> float | None:
    """Return the mean of a column, None where nothing was measured."""
    return None if values.dropna().empty else float(values.astype(float).mean())


def _change(first: "pd.DataFrame", last: "pd.DataFrame", name: str) -> str:
    before, after = mean(first[name]), mean(last[name])
    if after is None:
        return "-"
    return f"{100 * after:.1f} %" if before is None else f"{100 * before:.1f} to {100 * after:.1f} %"
