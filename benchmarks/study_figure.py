"""The figure of docs/results/study.md, accuracy against saved bytes, from results/study.json and study_rivals.json.

python benchmarks/study_figure.py     writes docs/images/study.png
"""

import json
import sys
from itertools import pairwise
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import ROOT

from fedact.reports.label_placement import obstacles, write
from fedact.reports.style import FRONTIER, GUIDE, Point, frontier, heading, line_style, plain, png, size_axis

TITLE = (
    "Accuracy against activation memory (bars: one standard deviation over three seeds)\n"
    "hollow: one seed, measured three days later; compare these with their own exact"
)


class Mark(NamedTuple):
    """A row: its name, its point (saved bytes, accuracy in %), the accuracy's standard deviation, whether it is hollow."""

    name: str
    point: Point
    spread: float
    hollow: bool


def marks(file: str, columns: tuple[str, str], hollow: bool) -> list[Mark]:
    """Return the rows of a file's table as marks; columns: of the name and of the accuracy."""
    table, found = json.loads((ROOT / "results" / file).read_text())["tables"]["default"], []
    for row in table["rows"]:
        named = dict(zip(table["columns"], row, strict=True))
        accuracy, _, spread = named[columns[1]].removesuffix(" %").partition(" ± ")
        name = named[columns[0]].partition("`, ")[0].strip("`").partition(" --")[0]
        size = float(str(named["saved bytes"]).replace(",", ""))
        found.append(Mark(name, (size, float(accuracy)), float(spread or 0), hollow))
    return found


def draw(found: list[Mark]) -> Figure:
    """Return the figure: a point a row, and the frontier of the full ones that none beats."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="saved bytes", ylabel="test accuracy at the end (%)")
    heading(figure, TITLE)
    plain(axes)
    styles = [
        line_style(place, 1.2) | ({"markerfacecolor": "white"} if each.hollow else {}) for place, each in enumerate(found)
    ]
    for mark, style in zip(found, styles, strict=True):
        axes.errorbar(*mark.point, yerr=mark.spread or None, **style | {"markersize": 7}, capsize=3, zorder=3)
    best = frontier((mark.point for mark in found if not mark.hollow), highest=True)
    axes.step(*zip(*best, strict=True), where="post", color=FRONTIER, linewidth=5, zorder=1)
    size_axis(axes, "x")
    axes.margins(x=0.12, y=0.12)
    figure.draw_without_rendering()
    taken = []
    for _, (size, score), spread, _ in found:
        taken += obstacles(axes, [(size, score - spread), (size, score), (size, score + spread)])
    for mark, style in zip(found, styles, strict=True):
        write(mark.name, [(axes, mark.point)], taken, color=style["color"], fontsize=9)
    for first, second in list(pairwise(best))[:1]:
        middle = ((first[0] * second[0]) ** 0.5, first[1])
        write("frontier", [(axes, middle)], taken, must=False, color=GUIDE, fontsize=9, style="italic")
    return figure


def main() -> int:
    """Draw and write."""
    found = marks("study.json", ("run", "accuracy"), False) + marks("study_rivals.json", ("method", "accuracy after"), True)
    (ROOT / "docs/images/study.png").write_bytes(png(draw(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
