"""Figures of a run: functions that take data and return a Figure."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from fedact.config.baselines import LOCAL, baseline_of, method_of
from fedact.reports.method_label import method_label
from fedact.reports.run.class_figure import iou_by_class, last_class_iou
from fedact.reports.run.memory_figure import axes_by_round, memory_by_round, width_of_line, without_baselines
from fedact.reports.run.partition_figure import partition_figure
from fedact.reports.safe_text import figure_label
from fedact.reports.style import PALETTE, PERCENT, TITLE_SIZE, as_baseline, draw_by_round, legend_below, line_style, png
from fedact.storage.disk import write_whole
from fedact.storage.rows import task_of
from fedact.storage.run import Run


def accuracy_by_round(run: Run) -> Figure:
    """Return the global model's score on the test set by round, a line a method, the mean over seeds."""
    figure, axes = axes_by_round(f"test {run.score_name} (%)")
    measured = run.rounds.dropna(subset=["accuracy"])
    methods = list(dict.fromkeys(map(method_of, measured["method"])))
    for method, rows in measured.groupby("method", sort=False):
        mean, place = rows.groupby("round")["accuracy"].mean() * PERCENT, methods.index(method_of(str(method)))
        style = as_baseline(line_style(place, width_of_line(place)), baseline_of(str(method)))
        draw_by_round(axes, mean, style, figure_label(f"{method_label(method)}, {mean.iloc[-1]:.1f} % at the end"))
    baselines = {baseline_of(str(method)) for method in measured["method"].unique()}
    title = f"The global model on the whole test set{' (local: the mean of own models)' if LOCAL in baselines else ''}"
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    if baselines == {None}:
        axes.legend(frameon=False, loc="best")
    else:
        legend_below(figure)
    return figure


def forgetting_by_round(run: Run) -> Figure:
    """Return by round what the score is made of: on classes that clients hold (lines), and that none holds (dashed).

    Of methods alone: two lines of each are as many as one can tell apart.
    """
    figure, axes = axes_by_round(f"test {run.score_name} (%)")
    for place, (method, rows) in enumerate(without_baselines(run.rounds).groupby("method", sort=False)):
        for name, dashes in (("client_accuracy", "-"), ("unheld_accuracy", "--")):
            mean = rows.dropna(subset=[name]).groupby("round")[name].mean() * PERCENT
            label = figure_label(method_label(method)) if name == "client_accuracy" else ""
            draw_by_round(axes, mean, line_style(place, width_of_line(place)) | {"linestyle": dashes}, label)
    title = "The clients' classes (lines) and those that no client holds (dashed)"
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.legend(frameon=False, loc="best")
    return figure


def partition_of_run(run: Run) -> Figure:
    """Return the figure of the run's partition, which must be on disk."""
    return partition_figure(run.partition, run.config.get("partition_by") or "class", run.classes, run.client_names)


def class_iou_of_run(run: Run) -> Figure:
    """Return each class's IoU at the end, a bar a method, in the order of vanilla's; for runs that have it."""
    by_method = run.rounds.groupby("method", sort=False)
    every = {method_label(method): last_class_iou(rounds, run.classes) for method, rounds in by_method}
    measured = {method: shares for method, shares in every.items() if shares}
    return iou_by_class(measured, PALETTE, "vanilla" if "vanilla" in measured else next(iter(measured)))


def predictions_of_run(run: Run) -> Figure:
    """Return predictions beside the ground truth; raises ConfigError where the run's data or its model is gone."""
    # What only reads records does without the models and the data.
    from fedact.reports.run.predictions import predictions_of

    return predictions_of(run)


FIGURES: dict[str, Callable[[Run], Figure]] = {
    "accuracy": accuracy_by_round,
    "forgetting": forgetting_by_round,
    "memory": memory_by_round,
    "partition": partition_of_run,
    "class_iou": class_iou_of_run,
    "predictions": predictions_of_run,
}
"""The one table of figures, by file name."""
ONLY_OF: dict[str, Callable[[Run], bool]] = {
    "forgetting": lambda run: not run.rounds["unheld_accuracy"].dropna().empty,
    "partition": lambda run: not run.partition.empty,
    "class_iou": lambda run: not run.rounds["class_iou"].dropna().empty,
    "predictions": lambda run: task_of(run.config) == "segmentation",
}
"""Of which runs the figures are that not every run has: an old one does not say who holds what."""


def figure_files(run: Run, folder: Path) -> dict[str, Path]:
    """Return the file of each figure that can be drawn of a run."""
    return {name: folder / f"{name}.png" for name in FIGURES if name not in ONLY_OF or ONLY_OF[name](run)}


def save_figures(run: Run, folder: Path) -> dict[str, str]:
    """Draw every figure into a folder; return why one could not be drawn, by its name, where that happened."""
    failed = {}
    for name, file in figure_files(run, folder).items():
        try:
            content = png(FIGURES[name](run))
        except Exception as error:
            # The run is done and stays whole whatever is wrong with a picture of it.
            failed[name] = " ".join(str(error).split()) or type(error).__name__
            continue
        write_whole(file, content)
    return failed
