"""The bench's figure: gradient error against peak and saved bytes, all methods, the frontier, and limit lines of a model."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from fedact.compression import family, make_method, method_name
from fedact.config.spec import spelled
from fedact.measure.gradient_error import ROUNDING
from fedact.measure.methods import IN_STREAMS, MethodMeasurement
from fedact.measure.rate_distortion import LimitPoint
from fedact.reports.label_placement import obstacles, write
from fedact.reports.method_label import method_label
from fedact.reports.safe_text import figure_label
from fedact.reports.style import (
    EXACT,
    FRONTIER,
    GUIDE,
    Point,
    error_axis,
    frontier,
    heading,
    line_style,
    plain,
    size_axis,
)

VARIANTS = ("-", "--", ":")
"""Line styles of a method's variants."""

ACCOUNTS = {"peak": "peak bytes of a step", "saved": "saved bytes of a step"}
"""The panels from left to right: what is counted, and the axis's words."""
RAIL, RAIL_HEIGHT = "#F4F4F4", 1.8
"""Colour of the panels of exact gradients, and their height where that of the others is 10."""
SPREAD = 2
"""Where the largest peak is less than this many times the least, nothing tells methods apart."""
RING = 11
"""Size of the ring around a method that recomputes inputs, in points."""
AGAIN = "makes inputs again instead of keeping them all, as blocks in streams do"
LIMIT, FLOOR, FARTHEST = "limit", "floor", 10
LIMITS: dict[str, tuple[str, str]] = {
    "gaussian_bytes": (
        "-",
        "Gaussian rate-distortion of the trained layers' inputs: a model, not a bound (axes and variances cost nothing)",
    ),
    "scalar_bytes": (":", "entropy-coded scalar quantisation: 0.255 bit a coded coefficient above it"),
}
"""Line style and words of the limit lines."""

Curves = dict[str, list[tuple[Point, str]]]
"""By family: its points (bytes, error), each with the value of the setting that the family is swept over."""


def curves(measurements: Sequence[MethodMeasurement], account: str = "saved") -> Curves:
    """Return each family's points with the swept setting's value, the fewest bytes first; rounding is an error of 0.

    account: which bytes, "peak" or "saved".
    """
    result: Curves = {}
    for row in measurements:
        method, errors = make_method(row.gradient_error.method), row.gradient_error
        name = method_name(family(method)) + (IN_STREAMS if row.room_bytes is not None else "")
        error = errors.total_error if errors.total_error > ROUNDING else 0.0
        setting = method.traits.sweep.setting
        value = getattr(method, setting) if setting else None
        point = ((getattr(errors, f"{account}_bytes"), error), "" if value is None else spelled(value))
        result.setdefault(name, []).append(point)
    return {name: sorted(points) for name, points in result.items()}


def recomputes(family_name: str) -> bool:
    """Tell whether a family makes inputs again instead of keeping them all, as blocks in streams do."""
    method = make_method(family_name.removesuffix(IN_STREAMS))
    return bool(method.derive or method.segment) or family_name.endswith(IN_STREAMS)


def error_against_bytes(
    title: str, measurements: Sequence[MethodMeasurement], limits: Sequence[LimitPoint] = (), floor_bytes: int = 0
) -> Figure:
    """Return the relative squared error of the whole gradient over peak bytes and over saved bytes, on logarithmic axes.

    A line is a family; what recomputes inputs has a ring around its points. Exact gradients have a rail of their own below;
    the frontier of all points is a step line that ends there. limits: of what is stored, drawn over saved bytes.
    floor_bytes: marked over peak bytes, unless 0.
    """
    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(ACCOUNTS), sharex="col", sharey="row", height_ratios=[10, RAIL_HEIGHT])
    drawn = {account: curves(measurements, account) for account in ACCOUNTS}
    styles = _styles(drawn["saved"])
    best = {}
    for (account, words), main, rail in zip(ACCOUNTS.items(), *panels, strict=True):
        _draw_panel(main, rail, drawn[account], styles)
        if account == "saved":
            _draw_limits(main, limits, drawn[account])
        elif floor_bytes:
            _mark_floor(main, rail, floor_bytes)
        rail.set_xlabel(words)
        size_axis(rail, "x")
        best[account] = frontier(point for points in drawn[account].values() for point, _ in points)
        _draw_frontier(main, rail, best[account])
    panels[0][0].set_ylabel("squared error of the gradient, relative to its square")
    panels[1][0].set_yticks([0], ["exact"])
    lines = swept_settings(drawn["saved"])
    along = f"\nalong the lines: {lines}" if lines else ""
    heading(figure, f"Gradient error against activation memory\n{figure_label(title)}{along}")
    _legend(figure, limits, any(map(recomputes, styles)))
    figure.draw_without_rendering()
    for account, main, rail in zip(ACCOUNTS, *panels, strict=True):
        sizes = [point[0] for points in drawn[account].values() for point, _ in points]
        must = account == "saved" or max(sizes) >= SPREAD * min(sizes)
        _label(main, rail, drawn[account], styles, best[account], must)
    return figure


def _draw_panel(main: Axes, rail: Axes, families: Curves, styles: Mapping[str, Mapping[str, Any]]) -> None:
    for name, points in families.items():
        for axes in (main, rail):
            if drawn := [point for point, _ in points if bool(point[1]) == (axes is main)]:
                axes.plot(*zip(*drawn, strict=True), **styles[name], label=name, zorder=3)
                if recomputes(name):
                    axes.plot(*zip(*drawn, strict=True), **_ring(styles[name]["color"]), zorder=2.5)
    rail.set(ylim=(-1, 1), facecolor=RAIL)
    error_axis(main)
    for axes in (main, rail):
        axes.margins(x=0.1, y=0.08)
        axes.yaxis.set_minor_formatter(NullFormatter())
    plain(main, rail)


def _draw_limits(main: Axes, limits: Sequence[LimitPoint], families: Curves) -> None:
    """Draw the limit lines where measured errors lie, not so far left that they press what was measured together."""
    measured = [point for points in families.values() for point, _ in points if point[1]]
    if not measured:
        return
    least, errors = min(size for size, _ in measured) / FARTHEST, [error for _, error in measured]
    inside = [point for point in limits if min(errors) <= point.error <= max(errors) and point.gaussian_bytes >= least]
    for name, (dashes, _) in LIMITS.items() if inside else ():
        sizes = [getattr(point, name) for point in inside]
        main.plot(sizes, [point.error for point in inside], **_limit_style(dashes), gid=LIMIT, zorder=2)


def _mark_floor(main: Axes, rail: Axes, floor_bytes: int) -> None:
    for axes in (main, rail):
        axes.axvline(floor_bytes, color="black", linestyle="--", linewidth=1, zorder=1, gid=FLOOR)
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    main.annotate("floor, one image", (floor_bytes, 0), (4, 3), **place, fontsize=9)


def _limit_style(dashes: str) -> dict[str, Any]:
    return {"color": "black", "linestyle": dashes, "linewidth": 1.1, "alpha": 0.7}


def _ring(color: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": "o", "markersize": RING, "markerfacecolor": "none", "markeredgecolor": color,
        "markeredgewidth": 0.8,
    }  # fmt: skip


def _legend(figure: Figure, limits: Sequence[LimitPoint], rings: bool) -> None:
    """Say what the limit lines and the rings are."""
    handles = [Line2D([], [], **_limit_style(dashes), label=words) for dashes, words in LIMITS.values()] if limits else []
    handles += [Line2D([], [], **_ring(GUIDE), label=AGAIN)] if rings else []
    if handles:
        figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside lower left")


def _styles(families: Curves) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each method, a line style for each variant of it, the same in streams."""
    lossy = [name for name, points in families.items() if any(point[1] for point, _ in points)]
    methods = list(dict.fromkeys(name.removesuffix(IN_STREAMS).partition(":")[0] for name in lossy))
    whole = dict.fromkeys(name.removesuffix(IN_STREAMS) for name in families)
    result: dict[str, dict[str, Any]] = {}
    for name in whole:
        method = name.partition(":")[0]
        variant = sum(other.partition(":")[0] == method for other in result)
        style = line_style(methods.index(method), 1.5) if method in methods else line_style(0, 1.5, EXACT)
        variation = {"linestyle": VARIANTS[variant % len(VARIANTS)], "markerfacecolor": "white" if variant else None}
        result[name] = {**style, **variation, "markersize": 5.5}
    return {name: result[name.removesuffix(IN_STREAMS)] for name in families}


def _draw_frontier(main: Axes, rail: Axes, best: Sequence[Point]) -> None:
    """Draw the least error that so many bytes can buy: a step down at every point of the frontier."""
    style: dict[str, Any] = {"color": FRONTIER, "linewidth": 5, "zorder": 1, "solid_joinstyle": "miter"}
    (left, right), bottom = main.get_xlim(), main.get_ylim()[0]
    lossy, exact = [point for point in best if point[1]], [size for size, error in best if not error]
    end = exact[0] if exact else right
    if lossy:
        after = [(end, lossy[-1][1]), *([(end, bottom)] if exact else [])]
        main.step(*zip(*lossy, *after, strict=True), where="post", label="frontier", **style)
    if exact:
        rail.plot([end, end, right], [1 if lossy else 0, 0, 0], **style)
    main.set_xlim(left, right)
    main.set_ylim(bottom=bottom)


def _label(
    main: Axes, rail: Axes, families: Curves, styles: Mapping[str, Mapping[str, Any]], best: Sequence[Point], must: bool
) -> None:
    """Write every family's name at one of its points, and the frontier's name.

    must: also where there is no room. Not where all peaks are much the same: the panel beside it has the same lines.
    """

    def places(points: Iterable[Point]) -> list[tuple[Axes, Point]]:
        return [(main if point[1] else rail, point) for point in points]

    taken: list[Bbox] = [text.get_window_extent() for text in main.texts]
    taken += [line.get_window_extent() for axes in (main, rail) for line in axes.lines if line.get_gid() == FLOOR]
    for points in families.values():
        for axes in (main, rail):
            taken += obstacles(axes, [point for point, _ in points if bool(point[1]) == (axes is main)])
    for name, points in families.items():
        color = styles[name]["color"]
        write(method_label(name), places(point for point, _ in reversed(points)), taken, must, color=color, fontsize=9.5)
    steps = [((first[0] * second[0]) ** 0.5, first[1]) for first, second in pairwise(best)]
    if steps:
        write("frontier", places(reversed(steps)), taken, must=False, color=GUIDE, fontsize=9.5, style="italic")


def swept_settings(families: Curves) -> str:
    """Return the settings along the lines with the values at both ends: ``bits 2 to 8; patch 7 to 2``."""
    lines = {name: [value for _, value in points] for name, points in families.items() if len(points) > 1}
    methods = {name: make_method(name.removesuffix(IN_STREAMS)) for name in lines}
    settings = (f"{methods[name].traits.sweep.setting} {values[0]} to {values[-1]}" for name, values in lines.items())
    return "; ".join(dict.fromkeys(settings))
