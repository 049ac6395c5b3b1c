"""What each layer keeps, method by method, from the plans of runs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedact.reports.comparison.cases import Case
from fedact.reports.comparison.figures import PALETTE, size_axis
from fedact.reports.run.figures import short_size
from fedact.reports.safe_text import drawn
from fedact.reports.style import heading, legend_below
from fedact.storage.rows import Row

MOST_LAYERS, MOST_CASES = 10, 10
OTHERS = "everything else"
MOST_LETTERS = 85
"""Of a name in the legend, which also says how many bytes and which micro-batch."""


def memory_by_layer(cases: Sequence[Case]) -> Figure | None:
    """Return what each trained layer's input takes in a step, a bar a case, as measured when its plan was made.

    The last layers are shown, and what all other modules keep (masks of activations, the loss). None where no plan says it.
    """
    plans = [(case, plan) for case in cases if (plan := _deepest(case)) is not None][:MOST_CASES]
    if not plans:
        return None
    layers = _last_first([plan for _, plan in plans])[:MOST_LAYERS]
    rows = [*layers, OTHERS]
    height = 0.8 / len(plans)
    figure = Figure(figsize=(9, 1.6 + max(0.35, 0.13 * len(plans)) * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, (case, plan) in enumerate(plans):
        sizes = _sizes(plan, layers)
        positions = [row + (place - (len(plans) - 1) / 2) * height for row in range(len(rows))]
        label = f"{drawn(case.label, MOST_LETTERS)}, {short_size(plan['saved_bytes'])}, micro-batch {plan['micro_batch']}"
        axes.barh(positions, [max(size, 0.5) for size in sizes], height, color=PALETTE[place % len(PALETTE)], label=label)
    axes.set_xscale("log")
    axes.set_xlim(left=_left(plans, layers))
    size_axis(axes, "x")
    axes.set_yticks(range(len(rows)), [drawn(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    heading(figure, "What a step keeps, layer by layer, the last one first (saved bytes)")
    legend_below(figure)
    return figure


def _deepest(case: Case) -> Row | None:
    """Return a case's first plan that trains the most layers and says what each module keeps."""
    plans = [plan for plan in case.plans.values() if plan.get("by_layer")]
    return max(plans, key=lambda plan: int(plan["layers"]), default=None)


def _last_first(plans: Sequence[Row]) -> list[str]:
    """Return the layers whose input some plan keeps something of, as their names count, the last one first."""
    kept = dict.fromkeys(str(each["name"]) for plan in plans for each in plan["kept"])
    held = {name for plan in plans for name, size in plan["by_layer"] if size}
    parts = list(dict.fromkeys(name.partition(".")[0] for name in kept))

    def place(name: str) -> tuple[int, list[tuple[int, str]]]:
        return parts.index(name.partition(".")[0]), [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]

    return sorted(kept.keys() & held, key=place, reverse=True)


def _sizes(plan: Row, layers: Sequence[str]) -> list[int]:
    by_layer = dict(plan["by_layer"])
    own = [int(by_layer.get(name, 0)) for name in layers]
    return [*own, sum(by_layer.values()) - sum(own)]


def _left(plans: Sequence[tuple[Case, Row]], layers: Sequence[str]) -> float:
    smallest = min((size for _, plan in plans for size in _sizes(plan, layers) if size), default=1)
    return smallest / 2
