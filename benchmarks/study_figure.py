"""The figure of docs/results/study.md, accuracy against saved bytes, from the rows of results/study.json.

python benchmarks/study_figure.py     writes docs/images/study.png
"""

import json
import sys
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import ROOT

from fedact.reports.label_placement import obstacles, write
from fedact.reports.style import FRONTIER, GUIDE, Point, frontier, heading, line_style, plain, png, size_axis

TITLE = "Accuracy against activation memory (bars: one standard deviation over three seeds; the others have one seed)"


class Mark(NamedTuple):
    """A row: its name, its point (saved bytes, accuracy in %), and the accuracy's standard deviation over seeds."""

    name: str
    point: Point
    spread: float


def marks(table: dict[str, Any]) -> list[Mark]:
    """Return a table's rows as marks.

    >>> marks({"columns": ["run", "accuracy", "saved bytes"], "rows": [["`asi`, one seed", "79.1 ± 0.2 %", 1573548]]})
    [Mark(name='asi', point=(1573548, 79.1), spread=0.2)]
    """
    found = []
    for row in table["rows"]:
        named = dict(zip(table["columns"], row, strict=True))
        accuracy, _, spread = named["accuracy"].removesuffix(" %").partition(" ± ")
        name = named["run"].partition("`, ")[0].strip("`").partition(" --")[0]
        found.append(Mark(name, (named["saved bytes"], float(accuracy)), float(spread or 0)))
    return found


def draw(found: list[Mark]) -> Figure:
    """Return the figure: a point a row, and the frontier of rows that none beats."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="saved bytes", ylabel="test accuracy at the end (%)")
    heading(figure, TITLE)
    plain(axes)
    styles = [line_style(place, 1.2) for place in range(len(found))]
    for mark, style in zip(found, styles, strict=True):
        axes.errorbar(*mark.point, yerr=mark.spread or None, **style | {"markersize": 7}, capsize=3, zorder=3)
    best = frontier((mark.point for mark in found), highest=True)
    axes.step(*zip(*best, strict=True), where="post", color=FRONTIER, linewidth=5, zorder=1)
    size_axis(axes, "x")
    axes.margins(x=0.12, y=0.12)
    figure.draw_without_rendering()
    taken = []
    for _, (size, score), spread in found:
        taken += obstacles(axes, [(size, score - spread), (size, score), (size, score + spread)])
    for mark, style in zip(found, styles, strict=True):
        write(mark.name, [(axes, mark.point)], taken, color=style["color"], fontsize=9)
    for first, second in list(pairwise(best))[:1]:
        middle = ((first[0] * second[0]) ** 0.5, first[1])
        write("frontier", [(axes, middle)], taken, must=False, color=GUIDE, fontsize=9, style="italic")
    return figure


def main() -> int:
    """Draw and write."""
    table = json.loads((ROOT / "results/study.json").read_text())["tables"]["default"]
    (ROOT / "docs/images/study.png").write_bytes(png(draw(marks(table))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
