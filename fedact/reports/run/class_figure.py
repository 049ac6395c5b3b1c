"""A figure of how well each class is segmented, method by method."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from fedact.reports.safe_text import figure_label
from fedact.reports.style import PERCENT, heading, legend_below, plain

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES, MOST_METHODS = 40, 10
MOST_WRITTEN = 5
"""Up to how many methods the bars of a class have room for their figures."""
CLASS_LETTERS, METHOD_LETTERS = 30, 95
ClassIoU = Mapping[str, float | None]
"""The IoU of each class by name, None for a class that is neither there nor taken to be there."""


def last_class_iou(rounds: "pd.DataFrame", names: Sequence[str] | None) -> dict[str, float | None]:
    """Return each class's IoU after the last measured round of every seed, the mean over seeds; empty where none was kept.

    rounds: of one method. names: of the classes, where they are known.
    """
    measured = rounds.dropna(subset=["class_iou"])
    last = measured.loc[measured.groupby("seed")["round"].idxmax()]["class_iou"]
    if not len(last):
        return {}
    by_seed = np.array([[np.nan if share is None else share for share in shares] for shares in last], dtype=float)
    means = [float(shares.mean()) if (shares := column[~np.isnan(column)]).size else None for column in by_seed.T]
    return dict(zip(class_names(names, len(means)), means, strict=True))


def class_names(names: Sequence[str] | None, count: int) -> list[str]:
    """Return a name for each class: its own, or its number where that tells too few apart."""
    numbered = [f"class {number}" for number in range(count)]
    return list(names) if names and len(set(names)) == len(names) == count else numbered


def iou_by_class(methods: Mapping[str, ClassIoU], colors: Sequence[str], order_by: str) -> Figure:
    """Return a bar for each method and class, the classes in the order of one method's IoU.

    order_by: the name of that method. Of more classes or methods than there is room for, the first.
    """
    first = dict(list(methods.items())[:MOST_METHODS])
    every = class_order(methods, order_by)
    classes = every[:MOST_CLASSES]
    written = len(first) <= MOST_WRITTEN
    height = 0.8 / len(first)
    tall = max(0.3, (0.13 if written else 0.09) * len(first)) * len(classes)
    figure = Figure(figsize=(9, 1.5 + tall), layout="constrained")
    axes = figure.add_subplot()
    for place, (method, shares) in enumerate(first.items()):
        row = [shares.get(name) for name in classes]
        positions = [number + (place - (len(first) - 1) / 2) * height for number in range(len(classes))]
        style: dict[str, Any] = {"color": colors[place % len(colors)], "label": figure_label(method, METHOD_LETTERS)}
        axes.barh(positions, [PERCENT * (share or 0) for share in row], height, **style)
        for position, share in zip(positions, row, strict=True) if written else ():
            text, end = "not there" if share is None else f"{PERCENT * share:.1f}", (PERCENT * (share or 0), position)
            axes.annotate(text, end, (3, 0), textcoords="offset points", va="center", fontsize=7, color="#444444")
    axes.set_yticks(range(len(classes)), [figure_label(name, CLASS_LETTERS) for name in classes])
    axes.set(xlabel="IoU (%)", xlim=(0, PERCENT), ylim=(max(1, len(classes)) - 0.4, -0.6))
    plain(axes, grid="x")
    left_out = f" (the first {len(classes)} of {len(every)} classes)" if len(every) > len(classes) else ""
    heading(figure, f"Intersection over union of each class at the end{left_out}")
    legend_below(figure)
    return figure


def class_order(methods: Mapping[str, ClassIoU], order_by: str) -> list[str]:
    """Return the classes that some method has an IoU of, the best of one method first, those that it lacks last."""
    first = methods[order_by]
    names = dict.fromkeys(name for shares in methods.values() for name, share in shares.items() if share is not None)
    return sorted(names, key=lambda name: -1 if (share := first.get(name)) is None else share, reverse=True)
