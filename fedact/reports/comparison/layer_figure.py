"""A figure of saved bytes by layer, method by method, from the plans of runs."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedact.reports.comparison.cases import Case
from fedact.reports.safe_text import figure_label
from fedact.reports.style import PALETTE, heading, legend_below, plain, short_size, size_axis
from fedact.storage.rows import Row

MOST_LAYERS, MOST_CASES = 10, 10
OTHERS = "everything else"
MOST_LETTERS = 70
"""Of a name in the legend, which also says how many bytes and which micro-batch."""


def memory_by_layer(cases: Sequence[Case]) -> Figure | None:
    """Return the saved bytes of each trained layer's input in a step, a bar a case, as measured for its plan.

    Of a case it is the plan that trains the most layers. The last layers have a row each, all other modules (masks of
    activations, the loss) one together. None where no plan has bytes by layer.
    """
    deepest = [
        (case, max(plans, key=lambda plan: int(plan["layers"])))
        for case in cases
        if (plans := [plan for plan in case.plans.values() if plan.get("by_layer")])
    ][:MOST_CASES]
    if not deepest:
        return None
    layers = _last_first([plan for _, plan in deepest])[:MOST_LAYERS]
    rows, height = [*layers, OTHERS], 0.8 / len(deepest)
    figure = Figure(figsize=(9, 1.6 + max(0.35, 0.13 * len(deepest)) * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    smallest = []
    for place, (case, plan) in enumerate(deepest):
        by_layer = dict(plan["by_layer"])
        sizes = [int(by_layer.get(name, 0)) for name in layers]
        sizes.append(sum(by_layer.values()) - sum(sizes))
        smallest += [size for size in sizes if size]
        positions = [row + (place - (len(deepest) - 1) / 2) * height for row in range(len(rows))]
        name = figure_label(case.label, MOST_LETTERS)
        sizes_of_step = ", ".join(f"{each} {short_size(plan[f'{each}_bytes'])}" for each in ("peak", "saved"))
        label = f"{name}: {sizes_of_step}, micro-batch {plan['micro_batch']}"
        label += f", recompute {plan['recompute']}" if plan.get("recompute") else ""
        axes.barh(positions, [max(size, 0.5) for size in sizes], height, color=PALETTE[place % len(PALETTE)], label=label)
    axes.set_xscale("log")
    axes.set_xlim(left=min(smallest, default=1) / 2)
    size_axis(axes, "x")
    axes.set_yticks(range(len(rows)), [figure_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    plain(axes, grid="x")
    heading(figure, "What a step keeps, layer by layer, the last one first (saved bytes)")
    legend_below(figure)
    return figure


def _last_first(plans: Sequence[Row]) -> list[str]:
    """Return the layers whose input some plan keeps something of, as their names count, the last one first."""
    kept = dict.fromkeys(str(tensor["name"]) for plan in plans for tensor in plan["kept"])
    held = {name for plan in plans for name, size in plan["by_layer"] if size}
    parts = list(dict.fromkeys(name.partition(".")[0] for name in kept))

    def place(name: str) -> tuple[int, list[tuple[int, str]]]:
        return parts.index(name.partition(".")[0]), [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]

    return sorted(kept.keys() & held, key=place, reverse=True)
