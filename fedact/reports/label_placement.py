"""Where labels of a figure may stand without covering a line, a point or each other."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

Point = tuple[float, float]

AROUND_POINT, AROUND_LINE = 5.0, 1.5
"""How far, in points (1/72 inch), a label keeps from a marker's middle and from a line."""
STEP = 3.0
"""Points along a line between two that are looked at."""
MARGIN = 4
"""Pixels between two texts."""
NEAR, FAR = (6,), (14, 24)
"""How far a label may stand from its point, in points; from FAR on, a thin line leads to it."""


def obstacles(axes: Axes, points: Sequence[Point]) -> Iterator[Bbox]:
    """Yield boxes, in pixels, around the markers of a line and along the line itself."""
    places = axes.transData.transform(np.asarray(points, float).reshape(-1, 2))
    for place in places:
        yield _square(place, AROUND_POINT * _pixels(axes))
    for first, second in pairwise(places):
        count = int(np.hypot(*(second - first)) / (STEP * _pixels(axes))) + 1
        for share in np.linspace(0, 1, count, endpoint=False):
            yield _square(first + share * (second - first), AROUND_LINE * _pixels(axes))


def write(
    text: str,
    places: Iterable[tuple[Axes, Point]],
    taken: list[Bbox],
    must: bool = True,
    near: Sequence[float] = NEAR,
    **style: Any,
) -> None:
    """Write a text beside one of the points, where it covers the least, and add its box to those taken.

    must: write it even far away or over something. near: how far it may stand without a line leading to it, in points. The
    figure must have been drawn once, so that its axes have their places.
    """
    candidates = []
    for (axes, point), away in product(list(places), (*near, *FAR) if must else near):
        for offset in ((away, 5), (away, -5), (-away, 5), (-away, -5), (0, away), (0, -away)):
            box = _box(axes, point, offset, _size(axes, text, style))
            covered = sum(box.padded(MARGIN).overlaps(other) for other in taken) + (0 if _inside(box, axes) else 100)
            candidates.append((covered, away, axes, point, box))
    covered, away, axes, point, box = min(candidates, key=lambda candidate: candidate[:2])
    if covered == 0 or must:
        _annotate(axes, text, point, box, away in FAR, style)
        taken.append(box)


def _annotate(axes: Axes, text: str, point: Point, box: Bbox, far: bool, style: dict[str, Any]) -> None:
    x, y = axes.transAxes.inverted().transform((box.x0, box.y0))
    leader = {"arrowstyle": "-", "linewidth": 0.6, "color": style.get("color"), "shrinkA": 0, "shrinkB": 3} if far else None
    label = axes.annotate(
        text, point, (x, y), textcoords="axes fraction", va="bottom", zorder=4, arrowprops=leader, **style
    )  # fmt: skip
    label.set_in_layout(False)


def _box(axes: Axes, point: Point, offset: Point, size: Point) -> Bbox:
    """Return the box of a text of this size at this offset from a point: beside it, or centred where the offset is 0."""
    corner = axes.transData.transform(point) + np.asarray(offset) * _pixels(axes)
    shift = [0.0 if away > 0 else extent if away < 0 else extent / 2 for away, extent in zip(offset, size, strict=True)]
    # Beside a marker, a text stands at its height.
    x, y = corner - shift
    return Bbox.from_bounds(x, y, *size)


def _size(axes: Axes, text: str, style: dict[str, Any]) -> Point:
    label = axes.text(0, 0, text, **style)
    extent = label.get_window_extent()
    label.remove()
    return extent.width, extent.height


def _square(middle: np.ndarray, half: float) -> Bbox:
    x, y = middle
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _pixels(axes: Axes) -> float:
    """Return the pixels of one point."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi / 72


def _inside(box: Bbox, axes: Axes) -> bool:
    outer = axes.get_window_extent()
    return bool(outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1)
