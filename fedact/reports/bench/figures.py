"""The bench's figure: gradient error against bytes, all methods, and the frontier."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from fedact.compression import family, make_method, method_name
from fedact.config.spec import spelled
from fedact.measure.gradient_error import ROUNDING
from fedact.measure.methods import MethodMeasurement
from fedact.reports.label_placement import obstacles, write
from fedact.reports.safe_text import figure_label
from fedact.reports.style import (
    EXACT,
    FRONTIER,
    GUIDE,
    TITLE_SIZE,
    Point,
    error_axis,
    frontier,
    line_style,
    plain,
    size_axis,
)

VARIANTS = ("-", "--", ":")
"""Line styles of a method's variants."""

Curves = dict[str, list[tuple[Point, str]]]
"""By family: its points (bytes, error), each with the value of the setting that the family is swept over."""


def curves(measurements: Sequence[MethodMeasurement]) -> Curves:
    """Return each family's points with the swept setting's value, the fewest bytes first; rounding is an error of 0."""
    result: Curves = {}
    for row in measurements:
        method, errors = make_method(row.gradient_error.method), row.gradient_error
        error = errors.total_error if errors.total_error > ROUNDING else 0.0
        setting = method.traits.sweep.setting
        value = getattr(method, setting) if setting else None
        point = ((errors.saved_bytes, error), "" if value is None else spelled(value))
        result.setdefault(method_name(family(method)), []).append(point)
    return {name: sorted(points) for name, points in result.items()}


def error_against_bytes(title: str, measurements: Sequence[MethodMeasurement]) -> Figure:
    """Return the relative squared error of the whole gradient over saved bytes, a line a family, on logarithmic axes.

    Exact gradients have a rail of their own below; the frontier of all points is a step line that ends there.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    main, rail = figure.subplots(2, 1, sharex=True, height_ratios=[10, 1])
    families = curves(measurements)
    styles = _styles(families)
    for name, points in families.items():
        for axes in (main, rail):
            if drawn := [point for point, _ in points if bool(point[1]) == (axes is main)]:
                axes.plot(*zip(*drawn, strict=True), **styles[name], label=name, zorder=3)
    main.set_ylabel("squared error of the gradient, relative to its square")
    rail.set(xlabel="saved bytes of a step", ylim=(-1, 1), facecolor="#F4F4F4")
    rail.set_yticks([0], ["exact"])
    error_axis(main)
    for axes in (main, rail):
        axes.margins(x=0.1, y=0.08)
        axes.yaxis.set_minor_formatter(NullFormatter())
    size_axis(rail, "x")
    plain(main, rail)
    best = frontier(point for points in families.values() for point, _ in points)
    _draw_frontier(main, rail, best)
    lines = swept_settings(families)
    heading = f"Gradient error against activation memory\n{figure_label(title)}" + (
        f"\nalong the lines: {lines}" if lines else ""
    )
    main.set_title(heading, loc="left", fontsize=TITLE_SIZE)
    figure.draw_without_rendering()
    _label(main, rail, families, styles, best)
    return figure


def _styles(families: Curves) -> dict[str, dict[str, Any]]:
    """Return a colour and a marker for each method, a line style for each variant of it."""
    lossy = [name for name, points in families.items() if any(point[1] for point, _ in points)]
    methods = list(dict.fromkeys(name.partition(":")[0] for name in lossy))
    result: dict[str, dict[str, Any]] = {}
    for name in families:
        method = name.partition(":")[0]
        variant = sum(other.partition(":")[0] == method for other in result)
        style = line_style(methods.index(method), 1.5) if name in lossy else line_style(0, 1.5, EXACT)
        variation = {"linestyle": VARIANTS[variant % len(VARIANTS)], "markerfacecolor": "white" if variant else None}
        result[name] = {**style, **variation, "markersize": 5.5}
    return result


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


def _label(main: Axes, rail: Axes, families: Curves, styles: Mapping[str, Mapping[str, Any]], best: Sequence[Point]) -> None:
    """Write every family's name at one of its points, and the frontier's name."""

    def places(points: Iterable[Point]) -> list[tuple[Axes, Point]]:
        return [(main if point[1] else rail, point) for point in points]

    taken: list[Bbox] = []
    for points in families.values():
        for axes in (main, rail):
            taken += obstacles(axes, [point for point, _ in points if bool(point[1]) == (axes is main)])
    for name, points in families.items():
        color = styles[name]["color"]
        write(name, places(point for point, _ in reversed(points)), taken, color=color, fontsize=9.5)
    steps = [((first[0] * second[0]) ** 0.5, first[1]) for first, second in pairwise(best)]
    if steps:
        write("frontier", places(reversed(steps)), taken, must=False, color=GUIDE, fontsize=9.5, style="italic")


def swept_settings(families: Curves) -> str:
    """Return the settings along the lines with the values at both ends: ``bits 2 to 8; patch 7 to 2``."""
    lines = {name: [value for _, value in points] for name, points in families.items() if len(points) > 1}
    settings = (f"{make_method(name).traits.sweep.setting} {values[0]} to {values[-1]}" for name, values in lines.items())
    return "; ".join(dict.fromkeys(settings))
