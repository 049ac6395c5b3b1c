"""A figure of a run's partition: every client and class where they are few, how they spread where they are many."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fedact.reports.safe_text import figure_label
from fedact.reports.style import COLORS, PALETTE, heading

if TYPE_CHECKING:
    import pandas as pd

MOST_BARS, MOST_COLORS = 40, 10
"""The most clients that have a bar each, and the most classes that have a colour each."""
MOST_COLUMNS = 400
"""The most clients that have a column each."""
MOST_BINS = 50
FAR_APART = 50
"""Sizes whose largest is more than this many times the middle one do not show beside each other on linear axes."""
PALEST = 0.25
"""Where in matplotlib's Blues one example stands, so that it is not taken for none."""

NAME_LETTERS, LETTERS_IN_A_ROW = 20, 60
"""Characters of a class's or a client's name, and of the names beside each other."""
PLURALS = {"class": "classes", "source": "sources"}
"""Plurals of the labels that examples are dealt by."""


def partition_figure(
    partition: "pd.DataFrame",
    by: str = "class",
    classes: Sequence[str] | None = None,
    clients_named: Sequence[str] | None = None,
) -> Figure:
    """Return the figure of a run's ``partition``, of its first seed where there are several.

    by: what the labels number, class or source. classes: the names of the classes, where they are known. clients_named: the
    names of the clients, where they have some; some of them may hold nothing.
    """
    seeds = partition["seed"].unique()
    first = partition[partition["seed"] == seeds[0]]
    labels, numbers = np.unique(first["label"], return_inverse=True)
    clients, examples = first["client"].to_numpy(), first["examples"].to_numpy()
    count = max(int(clients.max()) + 1, len(clients_named or ()))
    if count > MOST_COLUMNS:
        figure = _histograms(np.bincount(clients, examples, count), np.bincount(clients, minlength=count), len(labels), by)
    else:
        held = np.zeros((len(labels), count), dtype=np.int64)
        held[numbers, clients] = examples
        few = count <= MOST_BARS and len(labels) <= MOST_COLORS
        named = classes if classes and by == "class" and labels.max() < len(classes) else None
        names = [figure_label(named[label] if named else label, NAME_LETTERS) for label in labels]
        figure = (_bars if few else _map)(held, names, by)
        if clients_named and count <= MOST_BARS:
            _name_clients(figure.axes[0 if few else 1], clients_named)
    which = f" under seed {seeds[0]}, the first of {len(seeds)}" if len(seeds) > 1 else ""
    heading(figure, f"Who holds what{which}, held-out examples included")
    return figure


def _bars(held: np.ndarray, labels: Sequence[str], by: str) -> Figure:
    """Draw a bar for each client, in it a piece for each class. held: int64 (classes, clients)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    bottom = np.zeros(held.shape[1])
    for number, (label, counts) in enumerate(zip(labels, held, strict=True)):
        style: dict[str, Any] = {"color": PALETTE[number], "edgecolor": "white", "linewidth": 0.5, "width": 0.85}
        axes.bar(np.arange(len(counts)), counts, bottom=bottom, label=label, **style)
        bottom += counts
    axes.set_xlim(-0.6, held.shape[1] - 0.4)
    _whole_numbers(axes, "client", "examples")
    figure.legend(title=by, frameon=False, loc="outside right upper", reverse=True)
    return figure


def _map(held: np.ndarray, labels: Sequence[str], by: str) -> Figure:
    """Draw a column for each client, its size above it. held: int64 (classes, clients)."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    top.bar(np.arange(held.shape[1]), held.sum(axis=0), width=1, color=COLORS[-1])
    _whole_numbers(top, "", "examples", marks=3)
    blues = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(PALEST, 1, 256)))
    norm = LogNorm(1, max(2, held.max()))
    image = below.imshow(np.ma.masked_equal(held, 0), aspect="auto", interpolation="nearest", cmap=blues, norm=norm)
    _whole_numbers(below, "client", by)
    names = dict(enumerate(labels))
    below.yaxis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))
    bar = figure.colorbar(image, ax=below, label=f"examples of the {by}", ticks=LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def _histograms(sizes: np.ndarray, classes: np.ndarray, all_classes: int, by: str) -> Figure:
    """Draw how many clients hold how much, and how many classes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    far = sizes.max() > FAR_APART * np.median(sizes)
    # Of a natural partition some clients may hold nothing.
    edges = np.geomspace(max(1, sizes.min()), sizes.max() + 1, MOST_BINS) if far else _whole_bins(sizes.min(), sizes.max())
    left.hist(sizes, bins=edges, color=COLORS[0], edgecolor="white", linewidth=0.3, log=far)
    _whole_numbers(left, "examples of a client", "clients", marks=6)
    if far:
        left.set_xscale("log")
        left.yaxis.set_major_locator(LogLocator())
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,g}"))
    right.hist(
        classes, bins=_whole_bins(min(1, classes.min()), all_classes), color=COLORS[1], edgecolor="white", linewidth=0.3
    )
    _whole_numbers(right, f"{PLURALS.get(by, by)} of a client, of {all_classes}", "clients", marks=6)
    right.set_xlim(min(1, classes.min()) - 0.5, all_classes + 0.5)
    return figure


def _name_clients(axes: Axes, names: Sequence[str]) -> None:
    """Write the clients' names at the bars or columns, upright where they are long."""
    labels = [figure_label(name, NAME_LETTERS) for name in names]
    long = sum(map(len, labels)) > LETTERS_IN_A_ROW
    axes.set_xticks(np.arange(len(labels)), labels, rotation=90 if long else 0, fontsize=8 if long else None)


def _whole_bins(low: int, high: int) -> np.ndarray:
    """Return edges between whole numbers, equally far apart."""
    width = -(-(high - low + 1) // MOST_BINS)
    return np.arange(low - 0.5, high + width, width)


def _whole_numbers(axes: Axes, xlabel: str, ylabel: str, marks: int = 8) -> None:
    """Name the axes and give them at most so many marks, at whole numbers; clients have up to eight."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, most in ((axes.xaxis, 8 if xlabel in ("client", "") else marks), (axes.yaxis, marks)):
        axis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
