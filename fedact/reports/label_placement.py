"""Where labels of a figure may stand without covering a line, a point or each other."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from fedact.reports.style import Point

AROUND_POINT, AROUND_LINE = 5.0, 1.5
"""Distance, in points (1/72 inch), between a label and a marker's middle, or a line."""
STEP = 3.0
"""Points between two boxes along a line."""
MARGIN = 4
"""Pixels between two labels."""
NEAR, FAR = (6,), (14, 24, 38, 56)
"""Distances of a label from its point, in points; from FAR on, a thin line leads to it."""
HALO = [withStroke(linewidth=2.5, foreground="white")]
"""Around the letters, where a text crosses a line after all."""
WORD = 10
"""A label that covers another one is as bad as one that covers this many marks."""
OUTSIDE = 100
"""A label that leaves its axes is as bad as one that covers this many others."""


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

    must: write it even far away or over something. near: distances without a line that leads to the label, in points. The
    figure must have been drawn once, so that its axes have their places.
    """
    candidates = []
    others = np.array([box.extents for box in taken]).reshape(-1, 4)
    for (axes, point), away in product(list(places), (*near, *FAR) if must else near):
        size, outer = _size(axes, text, style), axes.get_window_extent()
        for offset in ((away, 5), (away, -5), (-away, 5), (-away, -5), (0, away), (0, -away)):
            # Beside a marker a text stands at its height, above and below it is centred.
            shift = [0.0 if part > 0 else 1.0 if part < 0 else 0.5 for part in offset] * size
            corner = axes.transData.transform(point) + np.asarray(offset) * _pixels(axes) - shift
            box = Bbox.from_bounds(*corner, *size)
            inside = outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1
            covered = _overlaps(box.padded(MARGIN), others) + (0 if inside else OUTSIDE)
            candidates.append((covered, away, axes, point, box))
    covered, away, axes, point, box = min(candidates, key=lambda candidate: candidate[:2])
    if covered and not must:
        return
    corner = axes.transAxes.inverted().transform((box.x0, box.y0))
    leader = {"arrowstyle": "-", "linewidth": 0.6, "color": style.get("color"), "shrinkA": 0, "shrinkB": 3}
    options: dict[str, Any] = {"textcoords": "axes fraction", "va": "bottom", "zorder": 4, "path_effects": HALO}
    if away in FAR:
        options["arrowprops"] = leader
    axes.annotate(text, point, tuple(corner), **options, **style).set_in_layout(False)
    taken += [box] * WORD


def _overlaps(box: Bbox, others: np.ndarray) -> int:
    """Return how many of the other boxes, given by their extents, a box overlaps."""
    return int(((others[:, :2] <= box.max) & (box.min <= others[:, 2:])).all(axis=1).sum())


def _size(axes: Axes, text: str, style: dict[str, Any]) -> np.ndarray:
    """Return a text's width and height in pixels."""
    label = axes.text(0, 0, text, **style)
    extent = label.get_window_extent()
    label.remove()
    return np.array([extent.width, extent.height])


def _square(middle: np.ndarray, half: float) -> Bbox:
    x, y = middle
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _pixels(axes: Axes) -> float:
    """Return the pixels of one point (1/72 inch)."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi / 72
