"""Figures of a comparison: functions that take cases and return a Figure."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from fedact.reports.comparison.cases import Case, score_of
from fedact.reports.comparison.statistics import Figures, figures_of
from fedact.reports.label_placement import Point, obstacles, write
from fedact.reports.run.class_figure import iou_by_class, last_class_iou
from fedact.reports.run.figures import COLORS, FEW_DECADES, short_size
from fedact.reports.safe_text import drawn, folded
from fedact.reports.style import LETTERS, heading, legend_below

PALETTE = (*COLORS[:6], "#882255", COLORS[6], "#999933", "#44AA99")
MARKERS = "osD^vP*Xp<"
FRONTIER = "#D0D0D0"
PERCENT = 100
LEAST_SPAN = 5
"""Points of the score that an axis shows at least."""
MOST_NAMED = 12
"""Points with their names beside them; more have a legend."""
ROW_LETTERS = 40
Cases = Sequence[Case]


def accuracy_by_round(cases: Cases) -> Figure:
    """Return the global model's score on the test set by round: the mean over seeds, with a standard deviation as a band."""
    title = "The global model on the server's test set (band: one standard deviation)"
    figure, axes = _by_round(f"test {score_of(cases)} (%)", title)
    for case, style in zip(cases, _styles(cases), strict=True):
        measured = case.rounds.dropna(subset=["accuracy"])
        if measured.empty:
            continue
        seeds = measured.groupby("round")["accuracy"]
        mean, spread = seeds.mean() * PERCENT, (seeds.std() * PERCENT).fillna(0)
        axes.plot(mean.index, mean, **style, label=drawn(case.label))
        axes.fill_between(mean.index, mean - spread, mean + spread, color=style["color"], alpha=0.12, linewidth=0)
    _cut_off_the_start(axes, cases)
    legend_below(figure)
    return figure


def memory_by_round(cases: Cases) -> Figure:
    """Return the activation memory of the largest client by round."""
    figure, axes = _by_round("saved bytes", "Activation memory of the largest client")
    for case, style in zip(cases, _styles(cases), strict=True):
        largest = case.clients.dropna(subset=["saved_bytes"]).groupby("round")["saved_bytes"].max().astype(float)
        if len(largest):
            axes.plot(largest.index, largest, **style, label=drawn(case.label))
    size_axis(axes, "y")
    legend_below(figure)
    return figure


def accuracy_against_memory(cases: Cases) -> Figure:
    """Return the final score over saved bytes, a point a case, with what no other case beats in both as the frontier."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plain(axes, "saved bytes (the largest client)", f"test {score_of(cases)} at the end (%)")
    found = [(case, style, figures_of(case, 1)) for case, style in zip(cases, _styles(cases), strict=True)]
    found = [each for each in found if each[2]["saved_bytes"] and each[2]["accuracy"] is not None]
    points = [_point(each) for *_, each in found]
    best = frontier(points)
    if best:
        axes.step(*zip(*best, strict=True), where="post", color=FRONTIER, linewidth=5, zorder=1, label="frontier")
    for case, style, each in found:
        spread = PERCENT * (each["accuracy_std"] or 0)
        how = {**style, "linewidth": 1.2, "markersize": 7, "capsize": 3, "zorder": 3}
        axes.errorbar(*_point(each), yerr=spread or None, label=drawn(case.label), **how)
    size_axis(axes, "x")
    axes.margins(x=0.12, y=0.12)
    score = score_of(cases)
    heading(figure, f"{score[0].upper()}{score[1:]} against activation memory (bars: one standard deviation over seeds)")
    if _have_room([case.label for case, *_ in found]):
        figure.draw_without_rendering()
        _name(axes, found, points)
    else:
        legend_below(figure)
    return figure


def _point(figures: Figures) -> Point:
    """Return the saved bytes and the score in percent."""
    return float(figures["saved_bytes"]), PERCENT * figures["accuracy"]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the (bytes, accuracy) that no other point beats in both, the fewest bytes first."""
    best: list[Point] = []
    for size, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((size, accuracy))
    return best


def clients_spread(cases: Cases) -> Figure:
    """Return each client's score on its own held-out examples after the last round it trained in, a row a case."""
    names = [folded(drawn(case.label), ROW_LETTERS) for case in cases]
    tallest = max(name.count("\n") for name in names)
    figure = Figure(figsize=(9, 1.4 + max(0.45, 0.2 * (tallest + 1)) * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    _plain(axes, f"{score_of(cases)} of a client on its own held-out examples (%)", "")
    random = np.random.default_rng(np.random.SeedSequence([0]))
    for place, (case, style) in enumerate(zip(cases, _styles(cases), strict=True)):
        own = case.clients.dropna(subset=["accuracy"])
        last = own.loc[own.groupby(["seed", "client"])["round"].idxmax()]["accuracy"].astype(float) * PERCENT
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
    found = {case.label: last_class_iou(case.rounds, case.run.classes) for case in cases}
    colors = [PALETTE[place % len(PALETTE)] for place, case in enumerate(cases) if found[case.label]]
    shown = {label: own for label, own in found.items() if own}
    plain = [case.label for case in cases if case.method == "vanilla" and case.label in shown]
    return iou_by_class(shown, colors, next(iter([*plain, *shown]))) if shown else None


FIGURES: dict[str, Callable[[Cases], Figure]] = {
    "accuracy-by-round": accuracy_by_round,
    "memory-by-round": memory_by_round,
    "accuracy-against-memory": accuracy_against_memory,
    "clients": clients_spread,
}
"""The one table of a comparison's figures, by file name; not in it are those that not every run has, by class and layer."""


def _have_room(labels: Sequence[str]) -> bool:
    return len(labels) <= MOST_NAMED and max(map(len, labels), default=0) <= LETTERS // 2


def _name(axes: Axes, found: Sequence[Any], points: Sequence[Point]) -> None:
    taken: list[Bbox] = []
    for point, (_, _, each) in zip(points, found, strict=True):
        spread = PERCENT * (each["accuracy_std"] or 0)
        taken += obstacles(axes, [(point[0], point[1] - spread), point, (point[0], point[1] + spread)])
    for (case, style, _), point in zip(found, points, strict=True):
        write(drawn(case.label), [(axes, point)], taken, color=style["color"], fontsize=9)
    for first, second in pairwise(frontier(points)):
        middle = ((first[0] * second[0]) ** 0.5, first[1])
        write("frontier", [(axes, middle)], taken, must=False, color="#888888", fontsize=9, style="italic")
        break


def _by_round(ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _plain(axes, "round", ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    heading(figure, title)
    return figure, axes


def _cut_off_the_start(axes: Axes, cases: Cases) -> None:
    """Leave what came before training below the axis where it would press all that followed into a narrow band."""
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
        says = f"before training: {lowest} %" if lowest == highest else f"before training: {lowest} to {highest} %"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate(says, (1, 0), (-6, 5), **place, fontsize=9, color="#666666")


def _plain(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def size_axis(axes: Axes, which: str) -> None:
    """Make an axis of bytes logarithmic, with plain sizes at its marks."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    axis.set_major_locator(LogLocator(subs=(1,) if high > FEW_DECADES * low else (1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda size, _: short_size(size)))
    axis.set_minor_formatter(NullFormatter())


def _styles(cases: Cases) -> list[dict[str, Any]]:
    """Return a line for each case, later ones thinner, so that one which lies upon another leaves it in sight."""
    return [
        {
            "color": PALETTE[place % len(PALETTE)],
            # A color that comes again has another mark.
            "marker": MARKERS[(place + place // len(PALETTE)) % len(MARKERS)],
            "linewidth": (width := max(1.1, 2.6 - 0.25 * place)),
            "markersize": width + 2.5,
            "linestyle": "-" if place < len(PALETTE) else "--",
        }
        for place in range(len(cases))
    ]
