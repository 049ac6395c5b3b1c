"""Figures of a run: functions that take data and return a Figure."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedact.reports.run.class_figure import iou_by_class, last_class_iou
from fedact.reports.run.partition_figure import partition_figure
from fedact.reports.safe_text import figure_label
from fedact.reports.style import PALETTE, PERCENT, TITLE_SIZE, draw_by_round, line_style, plain, png
from fedact.storage.disk import write_whole
from fedact.storage.rows import task_of
from fedact.storage.run import Run

BYTES_PER_KB = 1000
LEGEND_COLUMNS = 3
FAR_APART = 8
"""Budgets with a larger ratio than this do not show beside each other on a linear axis."""


def accuracy_by_round(run: Run) -> Figure:
    """Return the global model's score on the test set by round, a line a method, the mean over seeds."""
    figure, axes = _by_round(f"test {run.score_name} (%)")
    measured = run.rounds.dropna(subset=["accuracy"])
    for place, (method, rows) in enumerate(measured.groupby("method", sort=False)):
        mean = rows.groupby("round")["accuracy"].mean() * PERCENT
        draw_by_round(
            axes, mean, line_style(place, _width(place)), figure_label(f"{method}, {mean.iloc[-1]:.1f} % at the end")
        )
    axes.set_title("The global model on the whole test set", loc="left", fontsize=TITLE_SIZE)
    axes.legend(frameon=False, loc="best")
    return figure


def forgetting_by_round(run: Run) -> Figure:
    """Return by round what the score is made of: on classes that clients hold (lines), and that none holds (dashed)."""
    figure, axes = _by_round(f"test {run.score_name} (%)")
    for place, (method, rows) in enumerate(run.rounds.groupby("method", sort=False)):
        for name, dashes in (("client_accuracy", "-"), ("unheld_accuracy", "--")):
            mean = rows.dropna(subset=[name]).groupby("round")[name].mean() * PERCENT
            label = figure_label(method) if name == "client_accuracy" else ""
            draw_by_round(axes, mean, line_style(place, _width(place)) | {"linestyle": dashes}, label)
    title = "The clients' classes (lines) and those that no client holds (dashed)"
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.legend(frameon=False, loc="best")
    return figure


def memory_by_round(run: Run) -> Figure:
    """Return measured activation memory by round: of each budget the largest client as a line, all as a band."""
    figure, axes = _by_round("saved bytes of a client (KB)")
    clients = run.clients.dropna(subset=["saved_bytes"])
    for place, (method, rows) in enumerate(clients.groupby("method", sort=False)):
        style = line_style(place, _width(place))
        for number, (_, same) in enumerate(rows.groupby("budget_bytes", dropna=False)):
            saved = same.groupby("round")["saved_bytes"].agg(["min", "max"]) / BYTES_PER_KB
            draw_by_round(axes, saved["max"], style, "" if number else figure_label(method))
            axes.fill_between(saved.index, saved["min"], saved["max"], color=style["color"], alpha=0.15, linewidth=0)
    budgets = sorted({int(size) for size in run.clients["budget_bytes"].dropna()})
    for budget in budgets:
        axes.axhline(budget / BYTES_PER_KB, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f"budget {budget:,} bytes", (0, budget / BYTES_PER_KB), (4, 3), textcoords="offset points",
            xycoords=("axes fraction", "data"), fontsize=9,
        )  # fmt: skip
    top = max([axes.get_ylim()[1], *(budget / BYTES_PER_KB for budget in budgets)])
    if budgets and budgets[-1] > FAR_APART * budgets[0]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        axes.set_ylim(top=1.6 * top)
    else:
        axes.set_ylim(bottom=0, top=1.15 * top)
    by_budget = " by budget" if len(budgets) > 1 else ""
    title = f"Activation memory{by_budget}: the largest client (line), all clients (band)"
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    if not clients.empty:
        figure.legend(frameon=False, loc="outside lower right", ncols=LEGEND_COLUMNS)
    return figure


def partition_of_run(run: Run) -> Figure:
    """Return the figure of the run's partition, which must be on disk."""
    return partition_figure(run.partition, run.config.get("partition_by") or "class", run.classes)


def class_iou_of_run(run: Run) -> Figure:
    """Return each class's IoU at the end, a bar a method, in the order of vanilla's; for runs that have it."""
    by_method = run.rounds.groupby("method", sort=False)
    every = {str(method): last_class_iou(rounds, run.classes) for method, rounds in by_method}
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


def _by_round(ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="round", ylabel=ylabel)
    plain(axes, grid="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _width(place: int) -> float:
    """Return the width of a line, later ones thinner, so that one which lies upon another leaves it in sight."""
    return max(1.5, 5 - 1.5 * place)
