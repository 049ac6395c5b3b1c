"""A figure's title, and its legend below."""

from matplotlib.figure import Figure

LETTERS, BESIDE = 120, 8
"""How many letters a line of a legend has room for, and what a line's mark and its distance to the next take."""
LEGEND_LINE = 0.17
"""Inches."""


def legend_below(figure: Figure, size: float = 9) -> None:
    """Write the legend under the figure, in as many columns as its names leave room for."""
    names = [str(text) for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
    if names:
        columns = min(len(names), max(1, LETTERS // (max(map(len, names)) + BESIDE)))
        # The legend is below the axes, not in their place.
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (-(-len(names) // columns)))
        figure.legend(frameon=False, fontsize=size, loc="outside lower left", ncols=columns)


def heading(figure: Figure, text: str) -> None:
    """Write a title that begins at the figure's left edge, however wide the names beside its axes are."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10.5)
