"""What all figures share: colours, marks, axes, titles, legends, the frontier, and their PNG files."""

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fedact.config.baselines import CENTRAL, LOCAL

if TYPE_CHECKING:
    import pandas as pd

Point = tuple[float, float]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's palette, which people with any colour vision can tell apart."""
PALETTE = (*COLORS[:6], "#882255", COLORS[6], "#999933", "#44AA99")
"""Colours of lines and bars: Okabe and Ito's without the grey, and three of Paul Tol's."""
EXACT, FRONTIER, GUIDE = "#555555", "#D0D0D0", "#777777"
"""Colours of exact gradients, of the frontier, and of lines and words that are no data."""
MARKERS = "osD^vP*Xp<"
BASELINE_LINES = {LOCAL: ("--", "x"), CENTRAL: (":", "+")}
"""Dashes and mark of each baseline's lines; no method has these marks."""
BASELINE_WIDTH = 1.5
ACCOUNTS = ("peak", "saved")
"""Accounts of bytes that figures show, what is alive first."""
PERCENT = 100
FEW_DECADES = 1000
"""A logarithmic axis whose largest value is less than this many times the least has room for more marks."""
DECADE = 10.0
"""An axis of errors spans at least this factor."""
SHORT = 1e-4
"""Smaller errors are written with an exponent."""
LETTERS, LEGEND_MARK = 120, 8
"""Letters in a line of a legend, and those that a mark and its distance to the next take the room of."""
LEGEND_LINE, LEGEND_WIDTH = 0.17, 9
"""Inches: of a line of a legend, and across the figures that have so many letters in it."""
MOST_MARKS = 30
"""Marks on a line over rounds."""
TITLE_SIZE = 10.5
"""Points."""


def line_style(place: int, width: float, color: str | None = None) -> dict[str, Any]:
    """Return matplotlib's settings of a line; a colour that comes a second time has another mark, and dashes."""
    return {
        "color": color or PALETTE[place % len(PALETTE)],
        "marker": MARKERS[(place + place // len(PALETTE)) % len(MARKERS)],
        "linestyle": "-" if place < len(PALETTE) else "--",
        "linewidth": width,
        "markersize": width + 3,
    }


def as_baseline(style: Mapping[str, Any], baseline: str | None) -> dict[str, Any]:
    """Return a method's line as that of a baseline of it: in its colour, thin and broken, with the baseline's own mark."""
    if baseline is None:
        return dict(style)
    dashes, mark = BASELINE_LINES[baseline]
    return {**style, "linestyle": dashes, "marker": mark, "linewidth": BASELINE_WIDTH, "markersize": BASELINE_WIDTH + 4.5}


def draw_by_round(axes: Axes, values: "pd.Series[Any]", style: Mapping[str, Any], label: str) -> None:
    """Draw a line over rounds, the values' index; of many rounds only some are marked, so that the marks stay apart."""
    axes.plot(values.index, values, **style, markevery=-(-len(values) // MOST_MARKS) or 1, label=label)


def frontier(points: Iterable[Point], highest: bool = False) -> list[Point]:
    """Return the (x, y) that no other point beats in both, the least x first; less is better, of y with highest: more."""
    sign = -1 if highest else 1
    best: list[Point] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], sign * point[1])):
        if not best or sign * y < sign * best[-1][1]:
            best.append((x, y))
    return best


def case_styles(count: int) -> list[dict[str, Any]]:
    """Return a line for each of so many, later ones thinner, so that one which lies upon another leaves it in sight."""
    return [line_style(place, max(1.1, 2.6 - 0.25 * place)) for place in range(count)]


def measured_accounts(clients: "pd.DataFrame") -> list[str]:
    """Return which accounts of bytes clients' rows have, peak before saved; saved alone where they have none."""
    return [name for name in ACCOUNTS if clients[f"{name}_bytes"].notna().any()] or ["saved"]


def plain(*panels: Axes, grid: str = "both") -> None:
    """Take the frame's top and right from axes, and give them a faint grid along one axis or both."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, alpha=0.3)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def size_axis(axes: Axes, which: str, marks: tuple[int, ...] = (1, 2, 5)) -> None:
    """Make an axis of bytes, "x" or "y", logarithmic, with plain sizes at its marks: multiples of powers of ten.

    marks: the multiples where it spans few decades; else 1 alone.
    """
    axis = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log")
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    axis.set_major_locator(LogLocator(subs=(1,) if high > FEW_DECADES * low else marks, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda size, _: short_size(size)))
    axis.set_minor_formatter(NullFormatter())


def short_size(size: float) -> str:
    """Return bytes in the largest unit that leaves one before the point: ``1.5 KB``."""
    return f"{size / 1e6:.4g} MB" if size >= 1e6 else f"{size / 1e3:.4g} KB" if size >= 1e3 else f"{size:g} bytes"


def error_axis(axes: Axes) -> None:
    """Make the vertical axis, of errors that are drawn already, logarithmic, with plain numbers at its marks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < DECADE * low:
        middle = (low * high) ** 0.5
        low, high = axes.set_ylim(middle / DECADE**0.5, middle * DECADE**0.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > FEW_DECADES * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda error, _: np.format_float_positional(error, trim="-") if error >= SHORT else f"{error:.2g}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def heading(figure: Figure, text: str) -> None:
    """Write a title that begins at the figure's left edge, however wide the names beside its axes are."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=TITLE_SIZE)


def legend_below(figure: Figure, size: float = 9) -> None:
    """Write the legend under the figure, in as many columns as its names leave room for."""
    names = [str(text) for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    if names:
        room = LETTERS * min(1.0, figure.get_figwidth() / LEGEND_WIDTH)
        columns = min(len(names), max(1, int(room) // (max(map(len, names)) + LEGEND_MARK)))
        # The legend is below the axes, not in their place.
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (-(-len(names) // columns)))
        figure.legend(frameon=False, fontsize=size, loc="outside lower left", ncols=columns)


def png(figure: Figure) -> bytes:
    """Return the bytes of a figure's PNG file."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()
