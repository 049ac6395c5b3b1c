"""The figure of a comparison's final scores against peak and saved bytes, with their frontiers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from fedact.reports.comparison.cases import Case, score_of, styles_of
from fedact.reports.comparison.statistics import figures_of
from fedact.reports.label_placement import obstacles, write
from fedact.reports.safe_text import figure_label
from fedact.reports.style import (
    ACCOUNTS,
    FRONTIER,
    GUIDE,
    LETTERS,
    PERCENT,
    Point,
    frontier,
    heading,
    legend_below,
    measured_accounts,
    plain,
    size_axis,
)

MOST_NAMED = 12
"""Points with their names beside them; more have a legend."""


class Mark(NamedTuple):
    """A case's point (bytes, score in %), and the score's standard deviation over seeds."""

    case: Case
    point: Point
    spread: float
    style: dict[str, Any]


def accounts_of(cases: Sequence[Case]) -> list[str]:
    """Return which accounts of bytes the cases have, peak before saved."""
    found = {account for case in cases for account in measured_accounts(case.clients)}
    return [account for account in ACCOUNTS if account in found]


def accuracy_against_memory(cases: Sequence[Case]) -> Figure:
    """Return the final score over peak and over saved bytes, a point a case, with the frontier of cases beaten by none."""
    accounts, score = accounts_of(cases), score_of(cases)
    figure = Figure(figsize=(9 if len(accounts) == 1 else 14, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(accounts), sharey=True, squeeze=False)[0]
    panels[0].set_ylabel(f"test {score} at the end (%)")
    heading(figure, f"{score[0].upper()}{score[1:]} against activation memory (bars: one standard deviation over seeds)")
    marks = {account: _marks(cases, account) for account in accounts}
    # Baselines answer another question than what a fleet can learn: they are drawn, but are no frontier.
    best = {
        account: frontier((mark.point for mark in marks[account] if mark.case.baseline is None), highest=True)
        for account in accounts
    }
    for axes, account in zip(panels, accounts, strict=True):
        _draw(axes, marks[account], best[account], account, named=account == accounts[-1])
    if max(map(len, marks.values())) > MOST_NAMED or any(len(case.label) > LETTERS // 2 for case in cases):
        legend_below(figure)
        return figure
    figure.draw_without_rendering()
    for axes, account in zip(panels, accounts, strict=True):
        _name(axes, marks[account], best[account])
    return figure


def _marks(cases: Sequence[Case], account: str) -> list[Mark]:
    marks = []
    for case, style in zip(cases, styles_of(cases), strict=True):
        figures = figures_of(case, 1)
        if (size := figures[f"{account}_bytes"]) and figures["accuracy"] is not None:
            point = float(size), PERCENT * figures["accuracy"]
            marks.append(Mark(case, point, PERCENT * (figures["accuracy_std"] or 0), style))
    return marks


def _draw(axes: Axes, marks: Sequence[Mark], best: Sequence[Point], account: str, named: bool) -> None:
    """Draw the points and their frontier; named: with names for a legend."""
    axes.set_xlabel(f"{account} bytes (the largest client)")
    plain(axes)
    for mark in marks:
        style = {**mark.style, "linewidth": 1.2, "markersize": 7, "capsize": 3, "zorder": 3}
        label = figure_label(mark.case.label) if named else ""
        axes.errorbar(*mark.point, yerr=mark.spread or None, label=label, **style)
    if best:
        label = "frontier" if named else ""
        axes.step(*zip(*best, strict=True), where="post", color=FRONTIER, linewidth=5, zorder=1, label=label)
    size_axis(axes, "x")
    axes.margins(x=0.12, y=0.12)


def _name(axes: Axes, marks: Sequence[Mark], best: Sequence[Point]) -> None:
    """Write every case's name at its point, and the frontier's name."""
    taken: list[Bbox] = []
    for _, (size, score), spread, _ in marks:
        taken += obstacles(axes, [(size, score - spread), (size, score), (size, score + spread)])
    for case, point, _, style in marks:
        write(figure_label(case.label), [(axes, point)], taken, color=style["color"], fontsize=9)
    for first, second in list(pairwise(best))[:1]:
        middle = ((first[0] * second[0]) ** 0.5, first[1])
        write("frontier", [(axes, middle)], taken, must=False, color=GUIDE, fontsize=9, style="italic")
