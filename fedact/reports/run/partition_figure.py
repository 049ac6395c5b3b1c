"""A figure of who holds what: every client and class where they are few, how they spread where they are many."""

from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    import pandas as pd

MOST_BARS, MOST_COLORS = 40, 10
"""Up to how many clients, and classes, each has a bar, and a colour that tells it from the others."""
MOST_COLUMNS = 400
"""Up to how many clients each has a column of its own."""
MOST_BINS = 50
FAR_APART = 50
"""Sizes whose largest is more than this many times the middle one do not show beside each other on linear axes."""
PALEST = 0.25
"""Where in matplotlib's Blues one example stands, so that it is not taken for none."""


PLURALS = {"class": "classes", "source": "sources"}
"""What examples are dealt by."""


def who_holds_what(partition: "pd.DataFrame", by: str = "class") -> Figure:
    """Return the figure of a run's ``partition``, of its first seed where there are several.

    by: what the labels number, class or source.
    """
    seeds = partition["seed"].unique()
    first = partition[partition["seed"] == seeds[0]]
    labels, numbers = np.unique(first["label"], return_inverse=True)
    clients, examples = first["client"].to_numpy(), first["examples"].to_numpy()
    count = int(clients.max()) + 1
    if count > MOST_COLUMNS:
        sizes = np.bincount(clients, examples)
        return _titled(_spread(sizes, np.bincount(clients), len(labels), by), seeds)
    held = np.zeros((len(labels), count), dtype=np.int64)
    held[numbers, clients] = examples
    few = count <= MOST_BARS and len(labels) <= MOST_COLORS
    return _titled(_bars(held, labels, by) if few else _map(held, labels, by), seeds)


def _titled(figure: Figure, seeds: np.ndarray) -> Figure:
    which = f" under seed {seeds[0]}, the first of {len(seeds)}" if len(seeds) > 1 else ""
    figure.suptitle(f"Who holds what{which}, held-out examples included", x=0.01, ha="left", fontsize="large")
    return figure


def _bars(held: np.ndarray, labels: np.ndarray, by: str) -> Figure:
    """Draw a bar for each client, in it a piece for each class. held: int64 (classes, clients)."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10"]
    bottom = np.zeros(held.shape[1])
    for number, (label, counts) in enumerate(zip(labels, held, strict=True)):
        style: dict[str, Any] = {"color": colors(number), "edgecolor": "white", "linewidth": 0.5, "width": 0.85}
        axes.bar(np.arange(len(counts)), counts, bottom=bottom, label=str(label), **style)
        bottom += counts
    _plain(axes, "client", "examples")
    figure.legend(title=by, frameon=False, loc="outside right upper", reverse=True)
    return figure


def _map(held: np.ndarray, labels: np.ndarray, by: str) -> Figure:
    """Draw a column for each client, its size above it. held: int64 (classes, clients)."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    top.bar(np.arange(held.shape[1]), held.sum(axis=0), width=1, color="#999999")
    _plain(top, "", "examples", marks=3)
    blues = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(PALEST, 1, 256)))
    norm = LogNorm(1, max(2, held.max()))
    image = below.imshow(np.ma.masked_equal(held, 0), aspect="auto", interpolation="nearest", cmap=blues, norm=norm)
    _plain(below, "client", by)
    below.yaxis.set_major_formatter(FuncFormatter(lambda place, _: _label(labels, place)))
    bar = figure.colorbar(image, ax=below, label=f"examples of the {by}", ticks=LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def _label(labels: np.ndarray, place: float) -> str:
    return str(labels[int(place)]) if 0 <= place < len(labels) and place == int(place) else ""


def _spread(sizes: np.ndarray, classes: np.ndarray, all_classes: int, by: str) -> Figure:
    """Draw how many clients hold how much, and how many classes."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    far = sizes.max() > FAR_APART * np.median(sizes)
    edges = np.geomspace(sizes.min(), sizes.max() + 1, MOST_BINS) if far else _whole_bins(sizes.min(), sizes.max())
    left.hist(sizes, bins=edges, color="#0072B2", edgecolor="white", linewidth=0.3, log=far)
    _plain(left, "examples of a client", "clients", marks=6)
    if far:
        left.set_xscale("log")
        left.yaxis.set_major_locator(LogLocator())
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,g}"))
    right.hist(classes, bins=_whole_bins(1, all_classes), color="#D55E00", edgecolor="white", linewidth=0.3)
    _plain(right, f"{PLURALS.get(by, by)} of a client, of {all_classes}", "clients", marks=6)
    right.set_xlim(0.5, all_classes + 0.5)
    return figure


def _whole_bins(low: int, high: int) -> np.ndarray:
    """Return edges between whole numbers, equally far apart."""
    width = -(-(high - low + 1) // MOST_BINS)
    return np.arange(low - 0.5, high + width, width)


def _plain(axes: Axes, xlabel: str, ylabel: str, marks: int = 8) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(_whole(8 if xlabel in ("client", "") else marks))
    axes.yaxis.set_major_locator(_whole(marks))


def _whole(marks: int) -> MaxNLocator:
    return MaxNLocator(marks, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
