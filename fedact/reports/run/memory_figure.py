"""A figure of a run's activation memory by round: peak bytes above saved bytes, with budgets and the floor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedact.config.baselines import baseline_of
from fedact.reports.method_label import method_label
from fedact.reports.safe_text import figure_label
from fedact.reports.style import TITLE_SIZE, draw_by_round, line_style, measured_accounts, plain, short_size, size_axis
from fedact.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

LEGEND_COLUMNS = 3
FAR_APART = 8
"""Sizes with a larger ratio than this do not show beside each other on a linear axis."""


def memory_by_round(run: Run) -> Figure:
    """Return measured peak and saved bytes by round: of each budget the largest client as a line, all as a band.

    The budgets are marked where they bound, the floor at the peak. Of runs without peaks there are saved bytes alone.
    """
    accounts = measured_accounts(run.clients)
    figure = Figure(figsize=(7, 1 + 3 * len(accounts)), layout="constrained")
    panels = figure.subplots(len(accounts), sharex=True, squeeze=False)[:, 0]
    for axes, account in zip(panels, accounts, strict=True):
        _prepare(axes, f"{account} bytes of a client")
        _draw_clients(axes, run, account)
        _mark(axes, _marks(run, account))
    panels[-1].set_xlabel("round")
    by_budget = " by budget" if run.clients["budget_bytes"].nunique() > 1 else ""
    title = f"Activation memory{by_budget}: the largest client (line), all clients (band)"
    panels[0].set_title(title, loc="left", fontsize=TITLE_SIZE)
    if panels[0].lines and panels[0].get_legend_handles_labels()[1]:
        figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower right", ncols=LEGEND_COLUMNS)
    return figure


def axes_by_round(ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with one panel over rounds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    _prepare(axes, ylabel)
    axes.set_xlabel("round")
    return figure, axes


def width_of_line(place: int) -> float:
    """Return the width of a line, later ones thinner, so that one which lies upon another leaves it in sight."""
    return max(1.5, 5 - 1.5 * place)


def _prepare(axes: Axes, ylabel: str) -> None:
    axes.set_ylabel(ylabel)
    plain(axes, grid="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def without_baselines(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of methods alone."""
    # Of no rows, the mapped column would be of no type, and choose columns.
    return rows[rows["method"].map(lambda method: baseline_of(str(method)) is None).astype(bool)]


def _draw_clients(axes: Axes, run: Run, account: str) -> None:
    name = f"{account}_bytes"
    # A baseline's clients hold what its method's do.
    clients = without_baselines(run.clients).dropna(subset=[name])
    for place, (method, rows) in enumerate(clients.groupby("method", sort=False)):
        style = line_style(place, width_of_line(place))
        for number, (_, same) in enumerate(rows.groupby("budget_bytes", dropna=False)):
            sizes = same.groupby("round")[name].agg(["min", "max"])
            draw_by_round(axes, sizes["max"], style, "" if number else figure_label(method_label(method)))
            axes.fill_between(sizes.index, sizes["min"], sizes["max"], color=style["color"], alpha=0.15, linewidth=0)


def _marks(run: Run, account: str) -> dict[str, int]:
    """Return the sizes to mark, by their words: budgets of this account, and the floor of the peak."""
    bounded = run.config.get("scope", "saved") == account
    budgets = sorted({int(size) for size in run.clients["budget_bytes"].dropna()}) if bounded else []
    floors = {int(size) for size in run.clients["floor_bytes"].dropna()} if account == "peak" else set()
    return {f"budget {size:,} bytes": size for size in budgets} | {f"floor {size:,} bytes": size for size in floors}


def _mark(axes: Axes, marks: Mapping[str, int]) -> None:
    """Draw lines at sizes, on a logarithmic axis where they are far apart, or far below what is drawn."""
    for words, size in marks.items():
        dashes = "--" if words.startswith("budget") else ":"
        axes.axhline(size, color="black", linestyle=dashes, linewidth=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(words, (0, size), (4, 3), **place, fontsize=9)
    sizes = list(marks.values())
    top = max([axes.get_ylim()[1], *sizes])
    floors = [size for words, size in marks.items() if words.startswith("floor")]
    if sizes and (max(sizes) > FAR_APART * min(sizes) or (floors and top > FAR_APART * min(floors))):
        axes.set_yscale("log")
        axes.set_ylim(top=1.6 * top)
        size_axis(axes, "y")
    else:
        axes.set_ylim(bottom=0, top=1.15 * top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: short_size(size)))
