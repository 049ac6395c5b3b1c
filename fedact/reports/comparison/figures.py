"""Figures of a comparison: functions that take cases and return a Figure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedact.config.baselines import CENTRAL, LOCAL
from fedact.reports.comparison.cases import Case, score_of, styles_of
from fedact.reports.comparison.frontier_figure import accounts_of, accuracy_against_memory
from fedact.reports.run.class_figure import iou_by_class, last_class_iou
from fedact.reports.safe_text import figure_label, wrapped
from fedact.reports.style import (
    GUIDE,
    PALETTE,
    PERCENT,
    draw_by_round,
    heading,
    legend_below,
    plain,
    size_axis,
)

LEAST_SPAN = 5
"""Points of the score that an axis shows at least."""
ROW_LETTERS = 40
Cases = Sequence[Case]


def accuracy_by_round(cases: Cases) -> Figure:
    """Return the global model's score on the test set by round: the mean over seeds, with a standard deviation as a band."""
    own = "local: the mean of own models; " if any(case.baseline == LOCAL for case in cases) else ""
    title = f"The global model on the whole test set ({own}band: one standard deviation)"
    figure, axes = _by_round(f"test {score_of(cases)} (%)", title)
    for case, style in zip(cases, styles_of(cases), strict=True):
        measured = case.rounds.dropna(subset=["accuracy"])
        if measured.empty:
            continue
        seeds = measured.groupby("round")["accuracy"]
        mean, spread = seeds.mean() * PERCENT, (seeds.std() * PERCENT).fillna(0)
        draw_by_round(axes, mean, style, figure_label(case.label))
        axes.fill_between(mean.index, mean - spread, mean + spread, color=style["color"], alpha=0.12, linewidth=0)
    _cut_off_the_start(axes, cases)
    legend_below(figure)
    return figure


def forgetting_by_round(cases: Cases) -> Figure | None:
    """Return the mean score on classes that no client holds by round; None where no case has such classes."""
    if all(case.rounds["unheld_accuracy"].dropna().empty for case in cases):
        return None
    title = "The global model on test examples of classes that no client holds: what falls is forgotten"
    figure, axes = _by_round(f"test {score_of(cases)} on these classes (%)", title)
    for case, style in zip(cases, styles_of(cases), strict=True):
        mean = case.rounds.dropna(subset=["unheld_accuracy"]).groupby("round")["unheld_accuracy"].mean() * PERCENT
        if len(mean):
            draw_by_round(axes, mean, style, figure_label(case.label))
    legend_below(figure)
    return figure


def memory_by_round(cases: Cases) -> Figure:
    """Return the activation memory of the largest client by round: peak bytes above saved bytes."""
    accounts = accounts_of(cases)
    figure = Figure(figsize=(9, 1.2 + 3.4 * len(accounts)), layout="constrained")
    panels = figure.subplots(len(accounts), sharex=True, squeeze=False)[:, 0]
    for axes, account in zip(panels, accounts, strict=True):
        _prepare(axes, f"{account} bytes")
        for case, style in zip(cases, styles_of(cases), strict=True):
            name = f"{account}_bytes"
            largest = case.clients.dropna(subset=[name]).groupby("round")[name].max().astype(float)
            if len(largest):
                draw_by_round(axes, largest, style, figure_label(case.label) if account == accounts[-1] else "")
        size_axis(axes, "y")
    panels[-1].set_xlabel("round")
    heading(figure, "Activation memory of the largest client")
    legend_below(figure)
    return figure


def clients_spread(cases: Cases) -> Figure:
    """Return clients' scores on their held-out examples after their last training, a row a case."""
    styles = dict(zip(cases, styles_of(cases), strict=True))
    # Where all examples lie in one place there is one model, and no client's.
    cases = [case for case in cases if case.baseline != CENTRAL] or cases
    names = [wrapped(figure_label(case.label), ROW_LETTERS) for case in cases]
    tallest = max(name.count("\n") for name in names)
    figure = Figure(figsize=(9, 1.4 + max(0.45, 0.2 * (tallest + 1)) * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(f"{score_of(cases)} of a client on its own held-out examples (%)")
    plain(axes)
    random = np.random.default_rng(np.random.SeedSequence([0]))
    for place, case in enumerate(cases):
        style, measured = styles[case], case.clients.dropna(subset=["accuracy"])
        last = measured.loc[measured.groupby(["seed", "client"])["round"].idxmax()]["accuracy"].astype(float) * PERCENT
        if last.empty:
            continue
        box = {"color": style["color"], "linewidth": 1.2}
        axes.boxplot(last, positions=[place], orientation="horizontal", widths=0.55, showfliers=False, whis=(0, 100),
                     boxprops=box, whiskerprops=box, capprops=box, medianprops={**box, "linewidth": 2.5})  # fmt: skip
        axes.plot(last, place + random.uniform(-0.18, 0.18, len(last)), ".", color=style["color"], alpha=0.35, markersize=5)
    axes.set_yticks(range(len(cases)), names)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    heading(figure, "Spread over clients, after their last training (box: quartiles; ends: the worst and the best)")
    return figure


def class_iou(cases: Cases) -> Figure | None:
    """Return each class's IoU at the end, a bar a case, in the order of vanilla's; None where no case has one."""
    every = {case.label: last_class_iou(case.rounds, case.run.classes) for case in cases}
    colors = [PALETTE[place % len(PALETTE)] for place, case in enumerate(cases) if every[case.label]]
    measured = {label: shares for label, shares in every.items() if shares}
    vanilla = [case.label for case in cases if case.method == "vanilla" and case.label in measured]
    return iou_by_class(measured, colors, next(iter([*vanilla, *measured]))) if measured else None


FIGURES: dict[str, Callable[[Cases], Figure]] = {
    "accuracy-by-round": accuracy_by_round,
    "memory-by-round": memory_by_round,
    "accuracy-against-memory": accuracy_against_memory,
    "clients": clients_spread,
}
"""The one table of a comparison's figures, by file name; not in it are those that not every run has, by class and layer."""


def _by_round(ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _prepare(axes, ylabel)
    axes.set_xlabel("round")
    heading(figure, title)
    return figure, axes


def _prepare(axes: Axes, ylabel: str) -> None:
    axes.set_ylabel(ylabel)
    plain(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _cut_off_the_start(axes: Axes, cases: Cases) -> None:
    """Cut round 0 off the axes where it would press the later rounds into a narrow band; a note says its score."""
    means = [case.rounds.groupby("round")["accuracy"].mean().dropna() * PERCENT for case in cases]
    later = [value for mean in means for number, value in mean.items() if number]
    before = [mean[0] for mean in means if 0 in mean.index]
    if not later or not before:
        return
    low, high = min(later), max(later)
    span = max(high - low, LEAST_SPAN)
    if min(before) < low - span:
        axes.set_ylim(low - 0.25 * span, high + 0.1 * span)
        axes.set_xlim(left=0.5)
        lowest, highest = f"{min(before):.1f}", f"{max(before):.1f}"
        text = f"before training: {lowest} %" if lowest == highest else f"before training: {lowest} to {highest} %"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate(text, (1, 0), (-6, 5), **place, fontsize=9, color=GUIDE)
