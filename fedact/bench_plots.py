"""The bench's figure: gradient error against bytes, all methods, and the frontier."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from fedact.compression import Method, make_method, method_name
from fedact.families import family
from fedact.measurement import Measured
from fedact.plots import COLORS
from fedact.spec import spelled

ROUNDING = 1e-9
"""A relative squared error below this is an exact gradient in another order of summation."""
FRONTIER = "#BBBBBB"
MARKERS = "osD^vP*X"
CORNERS = [(7, 7, "left", "bottom"), (7, -7, "left", "top"), (-7, 7, "right", "bottom"), (-7, -7, "right", "top")]
"""Where a label may stand beside its point: offset in points, and alignment."""

Point = tuple[float, float]


def frontier(points: Iterable[Point]) -> list[Point]:
    """Return the (bytes, error) that no other point beats in both, the fewest bytes first."""
    best: list[Point] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def curves(found: Sequence[Measured]) -> dict[str, list[tuple[Point, str]]]:
    """Return each family's points with the swept setting's value, the fewest bytes first; rounding is an error of 0."""
    result: dict[str, list[tuple[Point, str]]] = {}
    for each in found:
        method, fidelity = make_method(each.fidelity.method), each.fidelity
        error = fidelity.total_error if fidelity.total_error > ROUNDING else 0.0
        point = (fidelity.saved_bytes, error)
        result.setdefault(method_name(family(method)), []).append((point, _value(method)))
    return {name: sorted(points) for name, points in result.items()}


def _value(method: Method) -> str:
    """Return the value of the setting that the method is swept over, empty where it has none."""
    setting, _ = method.sweep
    return spelled(getattr(method, setting)) if setting and getattr(method, setting) is not None else ""


def error_against_bytes(title: str, found: Sequence[Measured]) -> Figure:
    """Return the relative squared error of the whole gradient over saved bytes, a line a family, on logarithmic axes.

    Exact gradients have a rail of their own below; the frontier of all points is a step line that ends there.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    main, rail = figure.subplots(2, 1, sharex=True, height_ratios=[9, 1])
    families = curves(found)
    styles = {name: _style(position) for position, name in enumerate(families)}
    for name, points in families.items():
        _draw(main, [point for point, _ in points if point[1]], styles[name], name)
        _draw(rail, [(size, 0.0) for (size, error), _ in points if not error], styles[name], name)
    _scales(main, rail)
    _draw_frontier(main, rail, frontier(point for points in families.values() for point, _ in points))
    main.set_title(f"Gradient error against activation memory\n{title}", loc="left", fontsize=11)
    _label(figure, main, rail, families, styles)
    return figure


def _draw(axes: Axes, points: Sequence[Point], style: Mapping[str, Any], name: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), **style, label=name, zorder=3)


def _style(position: int) -> dict[str, Any]:
    # Eight colours, eight markers: the ninth family has the first colour again and another marker.
    marker = MARKERS[(position + position // len(COLORS)) % len(MARKERS)]
    return {"color": COLORS[position % len(COLORS)], "marker": marker, "markersize": 6, "linewidth": 1.5}


def _scales(main: Axes, rail: Axes) -> None:
    main.set_yscale("log")
    main.set_xscale("log")
    main.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    main.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
    main.yaxis.set_minor_formatter(NullFormatter())
    main.set_ylabel("squared error of the gradient, relative to its square")
    rail.set_ylim(-1, 1)
    rail.set_yticks([0], ["exact"])
    rail.set_facecolor("#F4F4F4")
    rail.set_xlabel("saved bytes of a step")
    rail.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    rail.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _spelled(size)))
    rail.xaxis.set_minor_formatter(NullFormatter())
    for axes in (main, rail):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.margins(x=0.12, y=0.1)


def _spelled(size: float) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} KB"


def _draw_frontier(main: Axes, rail: Axes, best: Sequence[Point]) -> None:
    """Draw the least error that so many bytes can buy: a step down at every point of the frontier."""
    style: dict[str, Any] = {"color": FRONTIER, "linewidth": 5, "zorder": 1, "solid_joinstyle": "miter"}
    left, right = main.get_xlim()
    lossy, exact = [point for point in best if point[1]], [size for size, error in best if not error]
    bottom, end = main.get_ylim()[0], exact[0] if exact else right
    ends = [(end, lossy[-1][1])] if lossy else []
    down = [(end, bottom)] if exact else []
    main.step(*zip(*[*lossy, *ends, *down], strict=True), where="post", label="frontier", **style) if lossy else None
    if exact:
        rail.plot([end, end, right], [1, 0, 0], **style)
    main.set_xlim(left, right)
    main.set_ylim(bottom=bottom)


def _label(
    figure: Figure,
    main: Axes,
    rail: Axes,
    families: Mapping[str, Sequence[tuple[Point, str]]],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write every family's name at one of its points, and the values of its setting, wherever nothing is in the way."""
    figure.draw_without_rendering()
    taken = [_around(main if point[1] else rail, point) for points in families.values() for point, _ in points]
    for name, points in families.items():
        _place(main, rail, [point for point, _ in points], name, styles[name]["color"], taken, 9.5, must=True)
    for name, points in families.items():
        for point, value in points:
            if value and len(points) > 1:
                _place(main, rail, [point], value, styles[name]["color"], taken, 7, must=False)


def _place(
    main: Axes, rail: Axes, points: Sequence[Point], text: str, color: str, taken: list[Bbox], size: float, must: bool
) -> None:
    """Write a text at the first of the points and corners where it overlaps nothing; if it must be, anywhere."""
    style: dict[str, Any] = {"color": color, "fontsize": size, "zorder": 4}
    for point in (points[0], points[-1], *points):
        axes = main if point[1] else rail
        for x, y, horizontal, vertical in CORNERS:
            label = axes.annotate(text, point, (x, y), textcoords="offset points", ha=horizontal, va=vertical, **style)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken) and _inside(box, axes):
                taken.append(box)
                return
            label.remove()
    if must:
        main.annotate(text, points[0], (7, 7), textcoords="offset points", **style)


def _around(axes: Axes, point: Point) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox.from_extents(x - 6, y - 6, x + 6, y + 6)


def _inside(box: Bbox, axes: Axes) -> bool:
    outer = axes.get_window_extent()
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
