"""A figure of plans over budgets: trained layers, and the gradient's expected error, by method."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from fedact.config.plan import Plan
from fedact.measure.gradient_error import ROUNDING
from fedact.reports.label_placement import obstacles, write
from fedact.reports.method_label import method_label
from fedact.reports.safe_text import figure_label
from fedact.reports.style import EXACT, PALETTE, TITLE_SIZE, Point, error_axis, line_style, plain, short_size

MOST_TICKS = 12
"""Budgets that have room for a tick each."""
SMALL, USUAL = 8.5, 9.5
"""Sizes of letters."""
BESIDE = (8,)
"""How far from a point its number stands, in points (1/72 inch)."""
TITLE_WIDTH = 100
"""Letters of a line of the title."""

Ladders = Mapping[str, Sequence[Plan]]
"""By method: its plans at rising budgets."""


def plans_against_budget(title: str, ladders: Ladders, asked: Iterable[int]) -> Figure:
    """Return two panels over budgets: the trained layers, and the mean expected error of one, with their number.

    asked: budgets to mark. Exact gradients have a rail of their own below the errors. One sum over all layers would make a
    plan look worse for every layer more that it trains.
    """
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    depth, error, rail = figure.subplots(3, 1, sharex=True, height_ratios=[5, 7, 1])
    every = [plan for plans in ladders.values() for plan in plans]
    styles, lowest = _styles(ladders), -max(0.5, max(plan.layers for plan in every) / 8)
    for name, plans in ladders.items():
        budgets = [plan.budget_bytes or 0 for plan in plans]
        for axes, points_of in ((depth, _depths), (error, _errors), (rail, _exact)):
            for run in runs(points_of(plans), budgets):
                axes.plot(*zip(*run, strict=True), **styles[name], zorder=3)
        for point in _skipped(plans, lowest):
            depth.plot(*point, **{**styles[name], "markerfacecolor": "white"}, zorder=3)
    counted = every[0].counted
    depth.set_ylabel(f"trained {counted}")
    _scales(depth, error, rail, lowest if any(plan.status == "skipped" for plan in every) else None)
    _budget_axis(rail, sorted({plan.budget_bytes or 0 for plan in every}), every[0].scope)
    depth.set_title(
        "\n".join(["What a budget buys", *wrap(figure_label(title), TITLE_WIDTH)]), loc="left", fontsize=TITLE_SIZE
    )
    error.set_title(
        f"expected error of a layer's gradient; numbers: trained {counted}, + with recompute", loc="left", fontsize=USUAL
    )
    for budget in asked:
        for axes in (depth, error, rail):
            axes.axvline(budget, color="black", linestyle="--", linewidth=1, zorder=1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        depth.annotate("asked", (budget, 1), (4, -2), **place, fontsize=USUAL)
    figure.draw_without_rendering()
    _label({depth: _depths, error: _errors, rail: _exact}, ladders, styles, lowest)
    return figure


def _depths(plans: Sequence[Plan]) -> list[Point]:
    return [(plan.budget_bytes or 0, plan.layers) for plan in plans if plan.status != "skipped"]


def _errors(plans: Sequence[Plan]) -> list[Point]:
    pairs = ((plan.budget_bytes or 0, plan.error_per_layer) for plan in plans if plan.status != "skipped")
    return [(budget, error) for budget, error in pairs if error is not None and error > ROUNDING]


def _exact(plans: Sequence[Plan]) -> list[Point]:
    pairs = ((plan.budget_bytes or 0, plan.error_per_layer) for plan in plans if plan.status != "skipped")
    return [(budget, 0.0) for budget, error in pairs if error is not None and error <= ROUNDING]


def _skipped(plans: Sequence[Plan], lowest: float) -> list[Point]:
    return [(plan.budget_bytes or 0, lowest) for plan in plans if plan.status == "skipped"]


def _styles(ladders: Ladders) -> dict[str, dict[str, Any]]:
    """Return a line for each method, grey where every gradient is exact.

    Later lines are thinner, so that one which lies upon another leaves it in sight.
    """
    lossy = [name for name, plans in ladders.items() if _errors(plans)]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(lossy)}
    return {
        name: line_style(place, max(1.5, 3.5 - place), colors.get(name, EXACT)) for place, name in enumerate(ladders)
    }  # fmt: skip


def runs(points: Sequence[Point], budgets: Sequence[int]) -> Iterator[list[Point]]:
    """Yield the runs of points at neighbouring budgets: no line crosses a budget without a point."""
    places = [budgets.index(int(budget)) - count for count, (budget, _) in enumerate(points)]
    for _, run in groupby(zip(places, points, strict=True), key=lambda pair: pair[0]):
        yield [point for _, point in run]


def _scales(depth: Axes, error: Axes, rail: Axes, skipped: float | None) -> None:
    """Give the panels their axes; skipped: where plans are drawn that train nothing, None where there are none."""
    plain(depth, error, rail)
    for axes in (depth, error, rail):
        axes.margins(x=0.08, y=0.15)
    numbers = [tick for tick in MaxNLocator(5, integer=True).tick_values(0, max(1.0, depth.dataLim.y1)) if tick >= 0]
    places, names = ([skipped], ["skipped"]) if skipped is not None else ([], [])
    depth.set_yticks([*places, *numbers], [*names, *(f"{tick:.0f}" if tick else "head alone" for tick in numbers)])
    error.set_ylabel("squared, relative to the exact one's square")
    if error.lines:
        error_axis(error)
    else:
        error.set_yticks([])
    rail.set(ylim=(-1, 1), facecolor="#F4F4F4")
    rail.set_yticks([0], ["exact"])


def _budget_axis(axes: Axes, budgets: Sequence[int], scope: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budgets) if len(budgets) <= MOST_TICKS else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: short_size(size)))
    axes.set_xlabel(f"budget: {scope} bytes of a step")


def _label(
    panels: Mapping[Axes, Callable[[Sequence[Plan]], list[Point]]], ladders: Ladders,
    styles: Mapping[str, Mapping[str, Any]], lowest: float,
) -> None:  # fmt: skip
    """Write each method's name at its line above, and every plan's trained convolutions at its point below."""
    depth, error, rail = panels
    taken: list[Bbox] = [text.get_window_extent() for text in depth.texts]
    for axes, points_of in panels.items():
        for plans in ladders.values():
            budgets = [plan.budget_bytes or 0 for plan in plans]
            taken += [box for run in runs(points_of(plans), budgets) for box in obstacles(axes, run)]
    for name, plans in ladders.items():
        color = styles[name]["color"]
        points = _depths(plans) or _skipped(plans, lowest)
        write(
            method_label(name),
            [(depth, point) for point in reversed(points)],
            taken,
            color=color,
            fontsize=USUAL,
            near=BESIDE,
        )
        layers = {plan.budget_bytes or 0: f"{plan.layers}{'+'[: plan.recompute]}" for plan in plans}
        for axes in (error, rail):
            for point in panels[axes](plans):
                write(layers[int(point[0])], [(axes, point)], taken, axes is error, BESIDE, color=color, fontsize=SMALL)
